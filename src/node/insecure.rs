//! Docker's `daemon.json`, edited as text: entries of its list `insecure-registries` come and go, every other byte stays.
//!
//! What was added is taken out again to the byte, whatever somebody changed elsewhere in the file meanwhile.

use std::ops::Range;

use serde_json::Value;

/// The one key that is edited.
const KEY: &str = "insecure-registries";

/// Why a text cannot be edited.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    /// Docker would not take it either.
    #[error("it is not JSON ({0}); docker would not start with it, so mend it or move it away")]
    NotJson(String),
    /// A list, a number …
    #[error("it is not a JSON object; mend it or move it away")]
    NotAnObject,
    /// The value of our key.
    #[error("its insecure-registries is not a list of texts; make it one")]
    NotAList,
    /// Only the last one counts for docker.
    #[error("it says insecure-registries more than once; merge them into one list")]
    Twice,
}

/// A text that can be edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DaemonJson {
    text: String,
}

/// Where things stand in the text.
struct Places {
    /// Whole members of the object, from the key to the end of the value.
    members: Vec<Range<usize>>,
    /// Which of them is our list, and its elements.
    list: Option<(usize, Vec<Range<usize>>)>,
    /// Right behind the bracket that opens the object, and the one that opens our list.
    open: usize,
    list_open: usize,
}

impl DaemonJson {
    /// Takes a file's content; none where there is no file.
    pub(crate) fn parse(content: Option<&[u8]>) -> Result<Self, Unusable> {
        let Some(content) = content else { return Ok(Self { text: "{}\n".into() }) };
        let text = std::str::from_utf8(content).map_err(|error| Unusable::NotJson(error.to_string()))?.to_string();
        let value: Value = crate::json::of_text(&text).map_err(|error| Unusable::NotJson(error.to_string()))?;
        let object = value.as_object().ok_or(Unusable::NotAnObject)?;
        if object.get(KEY).is_some_and(|list| !list.as_array().is_some_and(|list| list.iter().all(Value::is_string))) {
            return Err(Unusable::NotAList);
        }
        let ours = |member: &Range<usize>| key_of(&text[member.clone()]).as_deref() == Some(KEY);
        if members(&text, skip_space(&text, 0)).iter().filter(|member| ours(member)).count() > 1 {
            return Err(Unusable::Twice);
        }
        Ok(Self { text })
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the key is there.
    pub(crate) fn has_list(&self) -> bool {
        self.places().list.is_some()
    }

    /// Entries of the list, in order.
    pub(crate) fn entries(&self) -> Vec<String> {
        let elements = self.places().list.map(|(_, elements)| elements).unwrap_or_default();
        elements.into_iter().filter_map(|element| crate::json::of_text(&self.text[element]).ok()).collect()
    }

    /// Whether the object is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.places().members.is_empty()
    }

    /// Appends an entry, and the list itself if there is none. One that is there already stays as it is.
    pub(crate) fn add(&mut self, entry: &str) {
        if self.entries().iter().any(|present| present == entry) {
            return;
        }
        let entry = Value::from(entry).to_string();
        let places = self.places();
        match &places.list {
            Some((_, elements)) => self.append(elements, places.list_open, &entry),
            None => self.append(&places.members, places.open, &format!("\"{KEY}\": [{entry}]")),
        }
    }

    /// Takes an entry out; the list stays, though it may be empty then.
    pub(crate) fn remove(&mut self, entry: &str) {
        while let Some(index) = self.entries().iter().position(|present| present == entry) {
            let elements = self.places().list.map(|(_, elements)| elements).unwrap_or_default();
            self.cut(&elements, index);
        }
    }

    /// Takes the list itself out, if it is empty.
    pub(crate) fn remove_empty_list(&mut self) {
        let places = self.places();
        if let Some((index, elements)) = &places.list
            && elements.is_empty()
        {
            self.cut(&places.members, *index);
        }
    }

    /// Puts `piece` behind the last of `pieces`, laid out as that one.
    fn append(&mut self, pieces: &[Range<usize>], open: usize, piece: &str) {
        let Some(last) = pieces.last() else { return self.text.insert_str(open, piece) };
        let before = self.text[..last.start].trim_end_matches(is_space).len();
        let space = match &self.text[before..last.start] {
            // `[1]` and `{"a": 1}` say nothing of what comes between two.
            "" => " ",
            space => space,
        };
        let appended = format!(",{space}{piece}");
        self.text.insert_str(last.end, &appended);
    }

    /// Takes one of the pieces out, with one comma: the opposite of `append` for the last one.
    fn cut(&mut self, pieces: &[Range<usize>], index: usize) {
        let range = match (index.checked_sub(1).map(|before| &pieces[before]), pieces.get(index + 1)) {
            (Some(before), _) => before.end..pieces[index].end,
            (None, Some(after)) => pieces[index].start..after.start,
            (None, None) => pieces[index].clone(),
        };
        self.text.replace_range(range, "");
    }

    fn places(&self) -> Places {
        let text = &self.text;
        let open = skip_space(text, 0);
        let members = members(text, open);
        let mut places = Places { list: None, open: open + 1, list_open: 0, members };
        if let Some(index) = places.members.iter().position(|member| key_of(&text[member.clone()]).as_deref() == Some(KEY)) {
            let list = value_of(text, &places.members[index]);
            places.list_open = list + 1;
            places.list = Some((index, elements(text, list)));
        }
        places
    }
}

// From here on the text is known to be JSON, so that brackets, commas and quotes are all that has to be looked for.

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn skip_space(text: &str, at: usize) -> usize {
    text.len() - text[at..].trim_start_matches(is_space).len()
}

/// End of the string that starts at `at`.
fn skip_string(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let mut at = at + 1;
    while bytes.get(at).is_some_and(|byte| *byte != b'"') {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// End of the value that starts at `at`.
fn skip_value(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (at, 0_usize);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = skip_string(text, at),
            b'{' | b'[' => (at, depth) = (at + 1, depth + 1),
            b'}' | b']' if depth > 0 => (at, depth) = (at + 1, depth - 1),
            b'}' | b']' | b',' if depth == 0 => break,
            b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => break,
            _ => {
                at += 1;
                continue;
            }
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// What stands between the brackets that open at `open`, without commas and space around them. `skip` finds the end of one.
fn pieces(text: &str, open: usize, skip: impl Fn(&str, usize) -> usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut at = skip_space(text, open + 1);
    while text.as_bytes().get(at).is_some_and(|byte| !matches!(byte, b'}' | b']')) {
        let end = skip(text, at);
        pieces.push(at..end);
        at = skip_space(text, end);
        if text.as_bytes().get(at) == Some(&b',') {
            at = skip_space(text, at + 1);
        }
    }
    pieces
}

fn elements(text: &str, open: usize) -> Vec<Range<usize>> {
    pieces(text, open, skip_value)
}

fn members(text: &str, open: usize) -> Vec<Range<usize>> {
    pieces(text, open, |text, at| skip_value(text, value_of(text, &(at..at))))
}

/// Start of a member's value.
fn value_of(text: &str, member: &Range<usize>) -> usize {
    let colon = skip_space(text, skip_string(text, member.start));
    skip_space(text, colon + 1)
}

fn key_of(member: &str) -> Option<String> {
    crate::json::of_text(&member[..skip_string(member, 0)]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [&str; 2] = ["192.168.0.1:443", "registry.marathon.mesos:5000"];

    fn parse(text: &str) -> DaemonJson {
        DaemonJson::parse(Some(text.as_bytes())).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn with_ours(text: &str) -> DaemonJson {
        let mut json = parse(text);
        OURS.iter().for_each(|entry| json.add(entry));
        json
    }

    #[test]
    fn entries_are_appended_in_the_file_s_own_layout() {
        let cases = [
            ("{}", r#"{"insecure-registries": ["192.168.0.1:443", "registry.marathon.mesos:5000"]}"#),
            (
                "{\n  \"debug\": true\n}\n",
                "{\n  \"debug\": true,\n  \"insecure-registries\": [\"192.168.0.1:443\", \"registry.marathon.mesos:5000\"]\n}\n",
            ),
            (
                "{\"insecure-registries\": [\n\t\"b:1\"\n], \"debug\": true}",
                "{\"insecure-registries\": [\n\t\"b:1\",\n\t\"192.168.0.1:443\",\n\t\"registry.marathon.mesos:5000\"\n], \"debug\": true}",
            ),
        ];
        for (before, after) in cases {
            assert_eq!(with_ours(before).text(), after);
        }
    }

    #[test]
    fn what_was_added_is_taken_out_to_the_byte_whatever_the_file_looks_like() {
        let nasty = [
            "{}",
            " \r\n{ \r\n }\r\n\r\n",
            r#"{"a":1}"#,
            r#"{"insecure-registries":[]}"#,
            "{\"insecure-registries\" : [ \n ] , \"x\" : [ ] }",
            r#"{"insecure-registries":["b:1","a:1"],"x":{"insecure-registries":["192.168.0.1:443"]}}"#,
            r#"{"insecure\u002dregistries":["b:1"]}"#,
            r#"{"x":"} ] , \" \\","insecure-registries":["b\u003a1"],"y\"":[[["}"]],{"k":"]"}]}"#,
            r#"{"big":123456789012345678901234567890,"small":1e-400,"ü":"€","n":null}"#,
            "{\"log-opts\": {\"max-size\": \"10m\"}, \"hosts\": [\"unix:///var/run/docker.sock\"]\n}",
        ];
        for text in nasty {
            let before = parse(text);
            let mut json = with_ours(text);
            let all: Vec<String> = before.entries().into_iter().chain(OURS.map(String::from)).collect();
            assert_eq!(json.entries(), all, "{}", json.text());
            // It must be JSON still, and say the same but for our entries.
            let (mut then, now): (Value, Value) = (crate::json::of_text(text).unwrap(), crate::json::of_text(json.text()).unwrap());
            then[KEY] = now[KEY].clone();
            assert_eq!(then, now);
            OURS.iter().for_each(|entry| json.remove(entry));
            if !before.has_list() {
                assert!(json.has_list(), "docker forgets entries only when it reads a list without them");
                json.remove_empty_list();
            }
            assert_eq!(json.text(), text);
        }
    }

    #[test]
    fn entries_of_others_may_change_meanwhile() {
        let mut json = with_ours(r#"{"insecure-registries":["b:1"]}"#);
        json.add("c:1");
        json.remove("b:1");
        OURS.iter().for_each(|entry| json.remove(entry));
        assert_eq!(json.entries(), ["c:1"]);
        json.remove_empty_list();
        assert!(json.has_list(), "it is not empty");
    }

    #[test]
    fn an_entry_is_there_once_and_leaves_in_every_spelling() {
        let mut json = parse(r#"{"insecure-registries":["192.168.0.1\u003a443","b:1","192.168.0.1:443"]}"#);
        json.add("192.168.0.1:443");
        assert_eq!(json.entries().len(), 3);
        json.remove("192.168.0.1:443");
        assert_eq!(json.text(), r#"{"insecure-registries":["b:1"]}"#);
    }

    #[test]
    fn a_file_that_is_not_there_is_an_empty_object() {
        let mut json = DaemonJson::parse(None).unwrap();
        json.add("a:1");
        assert_eq!(json.text(), "{\"insecure-registries\": [\"a:1\"]}\n");
        json.remove("a:1");
        json.remove_empty_list();
        assert!(json.is_empty());
    }

    #[test]
    fn what_cannot_be_edited_is_refused_with_a_remedy() {
        let refused = |text: &[u8]| DaemonJson::parse(Some(text)).unwrap_err().to_string();
        for text in [&b""[..], b"{", b"{} x", b"{\"a\": 1,}", b"\xff", b"\xef\xbb\xbf{}", b"// no\n{}"] {
            assert!(refused(text).contains("mend it or move it away"), "{}", refused(text));
        }
        assert!(refused(b"[]").contains("not a JSON object"));
        for list in ["null", "\"a\"", "[1]", "{}"] {
            assert!(refused(format!("{{\"insecure-registries\": {list}}}").as_bytes()).contains("not a list of texts"));
        }
        assert!(refused(br#"{"insecure-registries":[],"insecure\u002dregistries":[]}"#).contains("more than once"));
    }
}
