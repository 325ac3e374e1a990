//! Who is let in by htpasswd: the operator's users or those whom the service keeps, and always this role's own account.

use reqwest::RequestBuilder;

use super::config::RegistryConfig;
use super::provided;
use super::state::{State, StateError};
use crate::protocol::{AuthBy, HeldAt};
use crate::secret::Secret;
use crate::users::{self, INTERNAL, UserError, Users};

/// How this role itself uses the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Everybody may.
    Open,
    /// With this account.
    Basic {
        /// Name of the user.
        user: &'static str,
        /// Of this start only.
        password: Secret<String>,
    },
    /// Only the authorisation server could let it in.
    NotPossible,
}

impl Access {
    /// A request as whom it is made.
    pub(super) fn on(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic { user, password } => request.basic_auth(user, Some(password.expose())),
            Self::Open | Self::NotPossible => request,
        }
    }
}

/// This role's own account, made anew at every start. The node on the same host pushes with it what is preloaded.
#[derive(Debug, Clone)]
pub struct Account {
    access: Access,
    /// Its line for htpasswd.
    line: Secret<String>,
}

impl Account {
    /// The account that this kind of authentication takes.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn of(auth: &AuthBy) -> Result<Self, UserError> {
        let mut line = String::new();
        let access = match auth {
            AuthBy::Nobody => Access::Open,
            AuthBy::Token { .. } => Access::NotPossible,
            AuthBy::Htpasswd { .. } => {
                let (password, hash) = users::random_password()?;
                line = format!("{INTERNAL}:{hash}\n");
                Access::Basic { user: INTERNAL, password }
            }
        };
        Ok(Self { access, line: Secret::new(line) })
    }

    /// How to get in.
    pub fn access(&self) -> Access {
        self.access.clone()
    }
}

/// The users in force.
#[derive(Debug)]
pub(super) struct Doorkeeper {
    /// Where the operator keeps them; none where the service does.
    held: Option<HeldAt>,
    users: Users,
    own: Account,
    /// Whether the files on the host say so.
    stored: bool,
    /// What is wrong with the operator's users.
    pub(super) problems: Vec<String>,
}

impl Doorkeeper {
    /// For htpasswd only. The service's users are those of the last order; the operator's are read at the first look.
    pub(super) fn open(config: &RegistryConfig, state: &State, account: &Account) -> Result<Option<Self>, StateError> {
        let AuthBy::Htpasswd { file } = &config.settings.auth else {
            state.remove_users(true)?;
            return Ok(None);
        };
        let users = match file {
            Some(_) => {
                state.remove_users(false)?;
                Users::default()
            }
            None => state.users()?,
        };
        let mut keeper = Self { held: file.clone(), users, own: account.clone(), stored: false, problems: Vec::new() };
        keeper.look(state);
        Ok(Some(keeper))
    }

    /// Puts the operator's users in force as they are now, and whatever could not be written before.
    pub(super) fn look(&mut self, state: &State) {
        let mut problems = Vec::new();
        match self.held.as_ref().map(provided::read) {
            None => {}
            Some(Ok(text)) => {
                let (users, lines) = Users::parse(text.expose());
                problems.extend(lines.into_iter().map(|line| format!("auth.htpasswd: {line}")));
                self.stored &= self.users == users;
                self.users = users;
            }
            // Who was let in goes on being let in, until the file can be read again.
            Some(Err(error)) => problems.push(format!("auth.htpasswd: {error}")),
        }
        if !self.stored {
            problems.extend(self.store(state).err().map(|error| error.to_string()));
        }
        if problems != self.problems {
            problems.iter().for_each(|problem| tracing::error!("{problem}"));
            self.problems = problems;
        }
    }

    /// Whether the service keeps them.
    pub(super) fn are_services(&self) -> bool {
        self.held.is_none()
    }

    /// The service's users, whose digest the status tells.
    pub(super) fn services(&self) -> Option<Secret<String>> {
        (self.are_services() && self.stored).then(|| self.users.text())
    }

    /// Lets in those whom the service keeps now.
    pub(super) fn take(&mut self, text: &Secret<String>, state: &State) -> Result<(), StateError> {
        let (users, _) = Users::parse(text.expose());
        state.store_users(&users)?;
        (self.users, self.stored) = (users, false);
        self.store(state)
    }

    /// Writes what the registry reads, and what the node does.
    fn store(&mut self, state: &State) -> Result<(), StateError> {
        state.store_htpasswd(&Secret::new(self.own.line.expose().clone() + self.users.text().expose()))?;
        if let Access::Basic { user, password } = &self.own.access {
            state.store_account(&Secret::new(format!("{user}:{}", password.expose())))?;
        }
        self.stored = true;
        Ok(())
    }
}
