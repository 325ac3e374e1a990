//! How the agents are divided among node pods: by the last digits of a number in their host names.
//!
//! Marathon places the instances of one large pod ever more slowly, since each is held against all others; several small ones with
//! classes of hosts that have nothing in common are placed side by side. A class depends on the host name alone, so who joins or leaves
//! changes nobody else's, and no constraint ever changes. How many there are is decided once, when the first pod is made.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::Host;

/// From so many agents on there are ten pods, and from so many on a hundred, where nobody has said how many.
const MANY: [usize; 2] = [200, 2000];

/// More agents than this in one pod are worth a word.
const CROWDED: u64 = 1000;

/// How many node pods the options ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Asked {
    /// As many as suit the number of agents at the installation.
    #[serde(rename = "auto")]
    Auto,
    /// One, for all agents.
    #[serde(rename = "1")]
    One,
    /// One for each last digit.
    #[serde(rename = "10")]
    Ten,
    /// One for the last two digits each.
    #[serde(rename = "100")]
    Hundred,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::One => "1",
            Self::Ten => "10",
            Self::Hundred => "100",
        })
    }
}

/// Which number in a host name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    /// The last one of the whole name, as in addresses.
    OfName,
    /// The last one before the first dot, as in `ip-10-0-1-23.us-west-2.compute.internal`.
    OfFirstLabel,
}

/// How the agents are divided. It never changes while there are pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One pod for all.
    One,
    /// One for each last digit.
    Ten(Number),
    /// One for the last two digits each.
    Hundred(Number),
}

/// One of the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shard {
    /// The only one.
    All,
    /// Of the hosts whose number ends in this digit.
    Digit(u8),
    /// Of the hosts whose number ends in these two, counted from 0 to 99; a number of one digit has a 0 before it.
    Digits(u8),
    /// Of the hosts without a number.
    Other,
}

impl Shard {
    fn index(self) -> usize {
        match self {
            Self::All => 0,
            Self::Digit(digit) => 1 + usize::from(digit % 10),
            Self::Digits(digits) => 11 + usize::from(digits % 100),
            Self::Other => 111,
        }
    }

    /// What stands behind the common part of the pods' names.
    pub fn suffix(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Digit(digit) => format!("-{digit}"),
            Self::Digits(digits) => format!("-{digits:02}"),
            Self::Other => "-other".into(),
        }
    }

    /// Reads what [`Shard::suffix`] writes.
    pub fn of_suffix(suffix: &str) -> Option<Self> {
        let Some(class) = suffix.strip_prefix('-') else { return suffix.is_empty().then_some(Self::All) };
        let is_number = class.bytes().all(|byte| byte.is_ascii_digit());
        match class.len() {
            1 if is_number => class.parse().ok().map(Self::Digit),
            2 if is_number => class.parse().ok().map(Self::Digits),
            _ => (class == "other").then_some(Self::Other),
        }
    }
}

/// How many pods there may be, of all layouts.
const SHARDS: usize = 112;

/// A table with a place for each pod that there may be.
#[derive(Debug)]
pub struct PerShard<T>(Vec<Option<T>>);

impl<T> Default for PerShard<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> PerShard<T> {
    /// The place of a pod.
    pub fn at(&mut self, shard: Shard) -> &mut Option<T> {
        if self.0.is_empty() {
            self.0.resize_with(SHARDS, || None);
        }
        &mut self.0[shard.index()]
    }

    /// Whether there is something of this pod.
    pub fn has(&self, shard: Shard) -> bool {
        self.0.get(shard.index()).is_some_and(Option::is_some)
    }

    /// What there is, in the order of the pods.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

impl Layout {
    /// The layout of an installation that has no pod yet.
    pub fn first<'a>(asked: Asked, hosts: impl Iterator<Item = &'a Host> + Clone) -> Self {
        let agents = hosts.clone().count();
        let asked = match asked {
            Asked::Auto if agents < MANY[0] => Asked::One,
            Asked::Auto if agents < MANY[1] => Asked::Ten,
            Asked::Auto => Asked::Hundred,
            asked => asked,
        };
        let of = |number| match asked {
            Asked::Auto | Asked::One => Self::One,
            Asked::Ten => Self::Ten(number),
            Asked::Hundred => Self::Hundred(number),
        };
        // The one by which the largest pod is smaller. Where that is the same for both, addresses are told apart by their end only.
        let addresses = hosts.clone().filter(|host| matches!(host, Host::Ip(_))).count();
        let mut numbers = [Number::OfFirstLabel, Number::OfName];
        if addresses * 2 > agents {
            numbers.reverse();
        }
        let [first, second] = numbers.map(of);
        if second.largest(hosts.clone()) < first.largest(hosts) { second } else { first }
    }

    /// The layout of the pods that there are, by their names and the classes of hosts in their constraints; none where there is no pod.
    ///
    /// Where only hosts without a number have one, `asked` says how many there are to be. Where somebody has changed the constraints, the
    /// number that counts is chosen again from `hosts`.
    pub fn read<'a>(
        pods: impl Iterator<Item = (Shard, Option<&'a str>)> + Clone,
        asked: Asked,
        hosts: impl Iterator<Item = &'a Host> + Clone,
    ) -> Option<Self> {
        let asked_for = |shard| match shard {
            Shard::All => Asked::One,
            Shard::Digit(_) => Asked::Ten,
            Shard::Digits(_) => Asked::Hundred,
            Shard::Other if asked == Asked::Hundred => Asked::Hundred,
            Shard::Other => Asked::Ten,
        };
        let possible = |asked| match asked {
            Asked::Auto | Asked::One => vec![Self::One],
            Asked::Ten => vec![Self::Ten(Number::OfName), Self::Ten(Number::OfFirstLabel)],
            Asked::Hundred => vec![Self::Hundred(Number::OfName), Self::Hundred(Number::OfFirstLabel)],
        };
        // Names with digits say how many there are.
        let certain = |(shard, _): &(Shard, Option<&str>)| *shard != Shard::Other;
        let all = || pods.clone().filter(certain).chain(pods.clone().filter(|pod| !certain(pod)));
        let exact = |(shard, class): (Shard, Option<&str>)| {
            possible(asked_for(shard)).into_iter().find(|layout| layout.class(shard).as_deref() == class)
        };
        all().find_map(exact).or_else(|| all().next().map(|(shard, _)| Self::first(asked_for(shard), hosts)))
    }

    /// How many agents of these the largest pod has.
    fn largest<'a>(self, hosts: impl Iterator<Item = &'a Host>) -> usize {
        self.count(hosts).into_iter().map(|(_, agents)| agents as usize).max().unwrap_or(0)
    }

    /// How many of these agents each pod has, in the order of [`Layout::shards`].
    pub fn count<'a>(self, hosts: impl Iterator<Item = &'a Host>) -> Vec<(Shard, u64)> {
        let mut counts: Vec<(Shard, u64)> = self.shards().into_iter().map(|shard| (shard, 0)).collect();
        let last = counts.len() - 1;
        for host in hosts {
            let at = match self.shard(host) {
                Shard::All => 0,
                Shard::Digit(digit) | Shard::Digits(digit) => usize::from(digit),
                Shard::Other => last,
            };
            counts[at].1 += 1;
        }
        counts
    }

    /// What the options would have to say for it.
    pub fn asked(self) -> Asked {
        match self {
            Self::One => Asked::One,
            Self::Ten(_) => Asked::Ten,
            Self::Hundred(_) => Asked::Hundred,
        }
    }

    /// The pod that a host belongs to.
    pub fn shard(self, host: &Host) -> Shard {
        let digits = |number| match (host, number) {
            // As below, without the text: a fifth of what is decided about 10,000 agents.
            (Host::Ip(ip), Number::OfName) => Some(ip.octets()[3] % 100),
            (Host::Ip(ip), Number::OfFirstLabel) => Some(ip.octets()[0] % 100),
            (Host::Dns(name), number) => last_digits(name, number),
        };
        match self {
            Self::One => Shard::All,
            Self::Ten(number) => digits(number).map_or(Shard::Other, |digits| Shard::Digit(digits % 10)),
            Self::Hundred(number) => digits(number).map_or(Shard::Other, Shard::Digits),
        }
    }

    /// The regular expression that the whole names of a pod's hosts match, and no others; none where the pod is for all. Java and Rust
    /// read it alike.
    pub fn class(self, shard: Shard) -> Option<String> {
        let number = match self {
            Self::One => return None,
            Self::Ten(number) | Self::Hundred(number) => number,
        };
        // What may stand before the number's end, between its last digits and what comes next, and behind.
        let (any, no_digit, rest) = match number {
            Number::OfName => (".", "[^0-9]", ""),
            Number::OfFirstLabel => ("[^.]", "[^0-9.]", "([.].*)?"),
        };
        Some(match shard {
            Shard::All => return None,
            Shard::Digit(digit) => format!("{any}*{digit}{no_digit}*{rest}"),
            Shard::Digits(digits @ 0..10) => format!("({any}*0|{any}*{no_digit}|){digits}{no_digit}*{rest}"),
            Shard::Digits(digits) => format!("{any}*{digits}{no_digit}*{rest}"),
            Shard::Other => format!("{no_digit}*{rest}"),
        })
    }

    /// All pods that there may be.
    pub fn shards(self) -> Vec<Shard> {
        match self {
            Self::One => vec![Shard::All],
            Self::Ten(_) => (0..10).map(Shard::Digit).chain([Shard::Other]).collect(),
            Self::Hundred(_) => (0..100).map(Shard::Digits).chain([Shard::Other]).collect(),
        }
    }
}

impl Asked {
    /// The layout as far as names depend on it: one pod where that has yet to be decided.
    pub fn names(self) -> Layout {
        match self {
            Self::Auto | Self::One => Layout::One,
            Self::Ten => Layout::Ten(Number::OfName),
            Self::Hundred => Layout::Hundred(Number::OfName),
        }
    }
}

/// The last two digits of the last number, from 0 to 99.
fn last_digits(name: &str, number: Number) -> Option<u8> {
    let part = match number {
        Number::OfName => name,
        Number::OfFirstLabel => name.split('.').next().unwrap_or(name),
    };
    let end = part.trim_end_matches(|c: char| !c.is_ascii_digit());
    let mut digits = end.bytes().rev().take_while(u8::is_ascii_digit).map(|digit| digit - b'0');
    let ones = digits.next()?;
    Some(digits.next().unwrap_or(0) * 10 + ones)
}

/// What to know where one pod has very many agents.
pub fn advice(name: &str, largest: u64) -> Option<String> {
    (largest > CROWDED).then(|| {
        format!(
            "{largest} agents share the pod {name}, and Marathon places many new nodes of so large a pod slowly. trust.shards is decided \
             when the package is installed; what another number takes stands in docs/install.md under \"Large clusters\""
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [Number; 2] = [Number::OfName, Number::OfFirstLabel];

    fn layouts() -> Vec<Layout> {
        NUMBERS.into_iter().flat_map(|number| [Layout::Ten(number), Layout::Hundred(number)]).chain([Layout::One]).collect()
    }

    #[test]
    fn each_pod_has_a_place_of_its_own() {
        let all: std::collections::BTreeSet<Shard> = layouts().into_iter().flat_map(Layout::shards).collect();
        let mut table = PerShard::default();
        assert!(all.iter().all(|shard| !table.has(*shard) && table.at(*shard).replace(*shard).is_none()));
        assert!(table.iter().eq(&all) && all.len() == SHARDS);
    }

    fn hosts(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<Host> {
        names.into_iter().map(|name| name.as_ref().parse().unwrap_or_else(|error| panic!("{}: {error}", name.as_ref()))).collect()
    }

    /// Names as clusters have them, and any others that are host names at all.
    fn all_sorts() -> Vec<Host> {
        let mut names: Vec<String> = Vec::new();
        for n in 0..256 {
            names.push(format!("10.0.{}.{n}", n % 7));
            names.push(format!("ip-10-0-1-{n}.us-west-2.compute.internal"));
            names.push(format!("agent-{n}.example.com"));
            names.push(format!("n{n:03}.rack{}.example.com", n % 4));
        }
        names.extend(["a", "agent.example.com", "7", "x7", "07x", "7.example", "a.7b", "a0.b", "100a", "00.x"].map(String::from));
        // All words of a few letters that mean something here.
        let letters = ['a', '-', '.', '0', '7', '1'];
        let mut words = vec![String::new()];
        for _ in 0..5 {
            words = words.iter().flat_map(|word| letters.map(|letter| format!("{word}{letter}"))).collect();
            names.extend(words.iter().cloned());
        }
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    #[test]
    fn every_host_belongs_to_one_pod_and_matches_the_class_of_no_other() {
        let hosts = all_sorts();
        assert!(hosts.len() > 3000, "{}", hosts.len());
        for layout in layouts() {
            let shards = layout.shards();
            let classes = shards.iter().map(|shard| {
                // Java's `String.matches`, as Marathon calls it, takes the whole text.
                let class = layout.class(*shard).unwrap_or(".*".into());
                (*shard, regex_lite::Regex::new(&format!("^(?:{class})$")).unwrap())
            });
            let classes: Vec<_> = classes.collect();
            // A hundred classes for every host would take its time; those that are likely to be confused are tried for all.
            for (index, host) in hosts.iter().enumerate() {
                let (shard, text) = (layout.shard(host), host.to_string());
                let own = shards.iter().position(|known| *known == shard).unwrap_or_else(|| panic!("{layout:?} {host}: {shard:?}"));
                let near = |at: usize| at == own || at % 10 == own % 10 || at / 10 == own / 10 || at + 1 == shards.len() || index % 97 == 0;
                for (at, (class, regex)) in classes.iter().enumerate().filter(|(at, _)| near(*at)) {
                    assert_eq!(regex.is_match(&text), at == own, "{layout:?}: {host} is of {shard:?}, and {class:?} is {regex}");
                }
            }
        }
    }

    #[test]
    fn classes_use_nothing_that_java_reads_otherwise() {
        for layout in layouts() {
            for class in layout.shards().into_iter().filter_map(|shard| layout.class(shard)) {
                let rest = class.replace("[^0-9.]", "").replace("[^0-9]", "").replace("[^.]", "").replace("[.]", "");
                assert!(rest.chars().all(|c| c.is_ascii_digit() || "().*|?".contains(c)), "{class}");
            }
        }
    }

    #[test]
    fn the_number_is_the_one_that_spreads_the_agents() {
        let spread = |names: Vec<String>| Layout::first(Asked::Ten, hosts(names).iter());
        let by_name = |format: &dyn Fn(usize) -> String| spread((0..50).map(format).collect());
        assert_eq!(by_name(&|n| format!("10.0.3.{n}")), Layout::Ten(Number::OfName));
        assert_eq!(by_name(&|n| format!("ip-10-0-1-{n}.us-west-2.compute.internal")), Layout::Ten(Number::OfFirstLabel));
        assert_eq!(by_name(&|n| format!("agent.{n}.example.com")), Layout::Ten(Number::OfName));
        assert_eq!(by_name(&|n| format!("agent-{n}.example.com")), Layout::Ten(Number::OfFirstLabel));
        assert_eq!(spread(vec!["10.0.3.17".into()]), Layout::Ten(Number::OfName));
        let ten = by_name(&|n| format!("10.0.3.{n}"));
        let all: Vec<Host> = hosts((0..1000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)));
        assert!(ten.largest(all.iter()) <= 100);
    }

    #[test]
    fn how_many_pods_there_are_follows_from_the_agents_at_the_installation_or_from_the_options() {
        let of = |asked, agents: usize| {
            let hosts = hosts((0..agents).map(|n| format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256)));
            Layout::first(asked, hosts.iter()).asked()
        };
        assert_eq!((of(Asked::Auto, 0), of(Asked::Auto, 199)), (Asked::One, Asked::One));
        assert_eq!((of(Asked::Auto, 200), of(Asked::Auto, 1999)), (Asked::Ten, Asked::Ten));
        assert_eq!(of(Asked::Auto, 2000), Asked::Hundred);
        for asked in [Asked::One, Asked::Ten, Asked::Hundred] {
            assert_eq!((of(asked, 0), of(asked, 3000)), (asked, asked));
        }
    }

    #[test]
    fn a_layout_is_read_back_from_the_pods_and_names_are_their_own() {
        for layout in layouts() {
            for shard in layout.shards() {
                assert_eq!(Shard::of_suffix(&shard.suffix()), Some(shard));
                let class = layout.class(shard);
                let read = Layout::read([(shard, class.as_deref())].into_iter(), layout.asked(), std::iter::empty());
                assert_eq!(read, Some(layout), "{shard:?} {class:?}");
            }
        }
        let read = |pods: &[(Shard, Option<&str>)], asked| Layout::read(pods.iter().copied(), asked, hosts(["10.0.0.1"]).iter());
        let ten = Layout::Ten(Number::OfName);
        let digit = ten.class(Shard::Digit(3));
        assert_eq!(read(&[], Asked::Ten), None);
        assert_eq!(read(&[(Shard::Other, ten.class(Shard::Other).as_deref())], Asked::Auto), Some(ten));
        assert_eq!(read(&[(Shard::Other, Some("x")), (Shard::Digit(3), digit.as_deref())], Asked::Hundred), Some(ten));
        assert_eq!(read(&[(Shard::Digits(3), Some("somebody's own"))], Asked::One), Some(Layout::Hundred(Number::OfName)));
        for suffix in ["-", "-x", "-100", "-+1", "other", "-other-", "-1x", "1"] {
            assert_eq!(Shard::of_suffix(suffix), None, "{suffix}");
        }
    }

    #[test]
    fn a_crowded_pod_is_worth_a_word() {
        assert_eq!(advice("private-registry-node", CROWDED), None);
        assert!(advice("private-registry-node", CROWDED + 1).unwrap().contains("1001 agents share the pod private-registry-node"));
    }
}
