//! Users of the registry and the hashes of their passwords, as htpasswd has them: one `name:hash` a line, bcrypt only, since the
//! registry takes no other kind.

use std::collections::BTreeMap;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// The registry role's own account. Nobody else may have its name.
pub const INTERNAL: &str = "private-registry-internal";
/// The variable that carries a [`Change`] to the job that applies it.
pub const CHANGE_VARIABLE: &str = "PRIVATE_REGISTRY_USERS_CHANGE";
/// The registry reckons a password for every request, so this is a compromise; htpasswd's own default is 5.
const COST: u32 = 10;
/// bcrypt looks at no more bytes of a password.
const MAX_PASSWORD: usize = 72;
/// What a hash of our kind has: `$2y$10$`, and 53 letters of salt and hash.
const HASH_LENGTH: usize = 60;

/// Why a name or password cannot be used, or a change not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum UserError {
    #[error("{0} is no name for a user: give 1 to 128 characters without a colon, blank or control character, and no # in front")]
    Name(String),
    #[error("{INTERNAL} is the registry's own account; choose another name")]
    Internal,
    #[error("a password has 1 to {MAX_PASSWORD} bytes and no control characters; bcrypt would not look at more")]
    Password,
    #[error("there is a user {0} already; --replace gives a new password")]
    Exists(String),
    #[error("there is no user {0}; `user list` shows those that there are")]
    Unknown(String),
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// Names and their hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users(BTreeMap<String, Secret<String>>);

impl Users {
    /// Reads a file of users: those that can be used, and what is wrong with the other lines, without any hash.
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let (mut users, mut problems) = (Self::default(), Vec::new());
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':') {
                None => problems.push(format!("line {number} has no colon: it is no user and is left out")),
                Some((name, _)) if name == INTERNAL => problems.push(format!("line {number}: {}", UserError::Internal)),
                Some((name, _)) if check_name(name).is_err() => {
                    problems.push(format!("line {number} has an unusable name and is left out"))
                }
                Some((name, hash)) if !is_bcrypt(hash) => {
                    let name = shown(name);
                    problems.push(format!(
                        "line {number}: the password of {name} is not hashed by bcrypt, so {name} cannot log in; make it anew with `htpasswd -B`"
                    ));
                }
                Some((name, hash)) => {
                    if users.0.insert(name.into(), Secret::new(hash.into())).is_some() {
                        problems.push(format!("line {number}: {} stands there twice; the last line counts", shown(name)));
                    }
                }
            }
        }
        (users, problems)
    }

    /// The file, the same for the same users. It holds hashes.
    pub fn text(&self) -> Secret<String> {
        Secret::new(self.0.iter().map(|(name, hash)| format!("{name}:{}\n", hash.expose())).collect())
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Makes a change.
    ///
    /// # Errors
    /// A name that is there already, or is not there.
    pub fn apply(&mut self, change: &Change) -> Result<(), UserError> {
        match change {
            Change::Add { name, replace: false, .. } if self.0.contains_key(name) => Err(UserError::Exists(name.clone())),
            Change::Add { name, hash, .. } => {
                check_name(name)?;
                if !is_bcrypt(hash) {
                    return Err(UserError::Hash("it is not bcrypt".into()));
                }
                self.0.insert(name.clone(), Secret::new(hash.clone()));
                Ok(())
            }
            Change::Remove { name } => self.0.remove(name).map(drop).ok_or_else(|| UserError::Unknown(name.clone())),
        }
    }
}

/// A name as problems show it. Where a colon is missing, what looks like a name has a hash in it.
fn shown(name: &str) -> &str {
    if name.contains('$') { "the user of that line" } else { name }
}

/// What is to become of one user. It holds a hash, so it is printed nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Change {
    /// Let somebody in.
    Add {
        /// Who.
        name: String,
        /// bcrypt.
        hash: String,
        /// Whether the name may be there already.
        replace: bool,
    },
    /// Let somebody in no more.
    Remove {
        /// Who.
        name: String,
    },
}

impl Change {
    /// Whom it is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Add { name, .. } | Self::Remove { name } => name,
        }
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Change of {}", self.name())
    }
}

/// Whether somebody may be called so.
///
/// # Errors
/// He may not.
pub fn check_name(name: &str) -> Result<(), UserError> {
    let odd = |c: char| c == ':' || c.is_control() || c.is_whitespace();
    if name == INTERNAL {
        return Err(UserError::Internal);
    }
    let is_good = (1..=128).contains(&name.len()) && !name.contains(odd) && !name.starts_with('#');
    // Shown with its odd characters made visible.
    if is_good { Ok(()) } else { Err(UserError::Name(format!("{name:?}"))) }
}

/// The hash of a user's password.
///
/// # Errors
/// The password cannot be used, or there are no random numbers.
pub fn hash(password: &Secret<String>) -> Result<String, UserError> {
    if !(1..=MAX_PASSWORD).contains(&password.expose().len()) || password.expose().contains(char::is_control) {
        return Err(UserError::Password);
    }
    hash_at(password, COST)
}

/// A password that cannot be guessed, and its hash at the lowest cost: there is nothing to guess.
///
/// # Errors
/// There are no random numbers.
pub(crate) fn random_password() -> Result<(Secret<String>, String), UserError> {
    let mut bytes = [0_u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| UserError::Hash("the operating system gave no random numbers".into()))?;
    let password = Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let hash = hash_at(&password, 4)?;
    Ok((password, hash))
}

fn hash_at(password: &Secret<String>, cost: u32) -> Result<String, UserError> {
    bcrypt::hash(password.expose(), cost).map_err(|error| UserError::Hash(error.to_string()))
}

/// `$2a$`, `$2b$` or `$2y$`, two digits of cost, and salt and hash.
fn is_bcrypt(hash: &str) -> bool {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|kind| hash.strip_prefix(kind));
    let Some((cost, salted)) = rest.and_then(|rest| rest.split_once('$')) else { return false };
    let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/');
    hash.len() == HASH_LENGTH
        && cost.len() == 2
        && cost.parse().is_ok_and(|cost: u8| (4..=31).contains(&cost))
        && salted.chars().all(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$10$abcdefghijklmnopqrstuuVb9Jm6Yv0pQ1wXyZ0123456789ABCDE";

    fn add(name: &str, replace: bool) -> Change {
        Change::Add { name: name.into(), hash: HASH.into(), replace }
    }

    #[test]
    fn lines_that_are_not_bcrypt_are_named_without_their_hash_and_the_others_count() {
        let text =
            format!("# people\n\nalice:{HASH}\nbob:$apr1$xyz$hunter2\ncarol:{{SHA}}hunter2\nnobody\n{INTERNAL}:{HASH}\r\n a b:{HASH}\n");
        let (users, problems) = Users::parse(&text);
        assert_eq!(users.names().collect::<Vec<_>>(), ["alice"]);
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems[0].contains("line 4") && problems[0].contains("bob") && problems[0].contains("htpasswd -B"), "{problems:?}");
        assert!(!problems.concat().contains("hunter2") && !problems.concat().contains(HASH));
        // Where the colon is missing, the hash stands where the name should.
        let (_, problems) = Users::parse(&format!("dave{HASH},x:y\ndave{HASH}:{HASH}\ndave{HASH}:{HASH}\n"));
        assert!(problems.len() == 2 && !problems.concat().contains(HASH), "{problems:?}");
        assert_eq!(users.text().expose(), &format!("alice:{HASH}\n"));
        assert!(!format!("{users:?}").contains(HASH));
    }

    #[test]
    fn a_name_is_replaced_only_if_that_is_said_and_removed_only_if_it_is_there() {
        let mut users = Users::default();
        users.apply(&add("alice", false)).unwrap();
        assert_eq!(users.apply(&add("alice", false)), Err(UserError::Exists("alice".into())));
        users.apply(&add("alice", true)).unwrap();
        assert_eq!(users.apply(&Change::Remove { name: "bob".into() }), Err(UserError::Unknown("bob".into())));
        users.apply(&Change::Remove { name: "alice".into() }).unwrap();
        assert_eq!(users, Users::default());
        assert!(!format!("{:?}", add("alice", true)).contains(HASH));
    }

    #[test]
    fn a_name_has_no_colon_and_is_not_the_registrys_own() {
        for name in ["", "a:b", "a b", "a\n", "#a", INTERNAL] {
            assert!(check_name(name).is_err() && Users::default().apply(&add(name, true)).is_err(), "{name}");
        }
        assert_eq!(check_name("ci@team.example"), Ok(()));
    }

    #[test]
    fn a_password_is_hashed_by_bcrypt_whole_or_not_at_all() {
        let hashed = hash(&Secret::new("hunter2".into())).unwrap();
        assert!(is_bcrypt(&hashed) && hashed.contains("$10$") && bcrypt::verify("hunter2", &hashed).unwrap());
        for bad in [String::new(), "x".repeat(73), "a\tb".into()] {
            assert_eq!(hash(&Secret::new(bad)), Err(UserError::Password));
        }
        let (password, hashed) = random_password().unwrap();
        assert!(is_bcrypt(&hashed) && bcrypt::verify(password.expose(), &hashed).unwrap());
    }
}
