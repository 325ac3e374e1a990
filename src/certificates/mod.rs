//! The CA, the leaf, signed orders and the registry's request. Nothing in here does I/O.
//!
//! Private keys leave these types only as [`Secret`](crate::secret::Secret), and no type that holds one prints it.

mod authority;
mod certificate;
mod der;
mod orders;
mod pem;
mod provided;
mod request;

pub(crate) use authority::unique;
pub use authority::{Authority, AuthorityError, requested_public_key};
pub use certificate::{Certificate, CertificateError};
pub use orders::{OrderError, OrderKey, OrderSigner, SigningKeyError};
pub use pem::PemError;
pub use provided::{ProvidedKey, ProvidedKeyError};
pub use request::{EnrolmentKey, EnrolmentKeyError, KeyType, RegistryKey, RegistryKeyError, SealError};
