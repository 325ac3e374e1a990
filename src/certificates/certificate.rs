//! Reading certificates: what a host needs to know of one in order to trust it.

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use super::{der, pem};
use crate::digest::sha256_hex;

const LABEL: &str = "CERTIFICATE";

/// Why a text is not a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The PEM around it.
    #[error(transparent)]
    Pem(#[from] pem::PemError),
    /// The block's content is no X.509 certificate, or something follows it.
    #[error("the PEM block is not an X.509 certificate")]
    NotX509,
}

/// An X.509 certificate, parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    subject: String,
    subject_hash: u32,
    is_ca: bool,
    not_before: i64,
    not_after: i64,
    spki: Vec<u8>,
    sans: Vec<String>,
}

impl Certificate {
    /// Reads a text that holds exactly one certificate and nothing else.
    pub fn parse_pem(text: &str) -> Result<Self, CertificateError> {
        Self::from_der(pem::decode_one(text, LABEL)?)
    }

    /// Reads a text of one or more certificates and nothing else: a chain or a bundle, in its order.
    pub fn parse_bundle(text: &str) -> Result<Vec<Self>, CertificateError> {
        pem::decode_all(text, LABEL)?.into_iter().map(Self::from_der).collect()
    }

    /// Reads DER, as a TLS server shows it.
    pub(crate) fn parse_der(der: Vec<u8>) -> Result<Self, CertificateError> {
        Self::from_der(der)
    }

    pub(super) fn from_der(der: Vec<u8>) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|_| CertificateError::NotX509)?;
        if !rest.is_empty() {
            return Err(CertificateError::NotX509);
        }
        let constraints = parsed.basic_constraints().map_err(|_| CertificateError::NotX509)?;
        let (subject, subject_hash) = (readable(parsed.subject()), subject_hash(parsed.subject()));
        let is_ca = constraints.is_some_and(|extension| extension.value.ca);
        let (not_before, not_after) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let (spki, sans) = (parsed.public_key().raw.to_vec(), sans(&parsed)?);
        Ok(Self { subject, subject_hash, is_ca, not_before, not_after, spki, sans, der })
    }

    /// PEM, one block, written the same way whatever the input looked like.
    pub fn pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }

    /// DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the DER, lower-case hex.
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.der)
    }

    /// The hash that names OpenSSL's `<hash>.0` links, as `openssl x509 -subject_hash` prints it with `{:08x}`.
    pub fn subject_hash(&self) -> u32 {
        self.subject_hash
    }

    /// Whether its basic constraints say that it is a CA.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    /// Start of validity, Unix seconds.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }

    /// End of validity, Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The SubjectPublicKeyInfo, DER: equal for two certificates of one key.
    pub fn public_key_spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// The subject for people, such as `CN=private-registry CA 1`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// DNS names and addresses that it is valid for, as text.
    pub fn san_names(&self) -> &[String] {
        &self.sans
    }
}

fn sans(certificate: &X509Certificate<'_>) -> Result<Vec<String>, CertificateError> {
    let extension = certificate.subject_alternative_name().map_err(|_| CertificateError::NotX509)?;
    let names = extension.map(|e| e.value.general_names.as_slice()).unwrap_or_default();
    Ok(names.iter().filter_map(san_text).collect())
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_string()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    }
}

/// A name as OpenSSL prints it, `O=Org, CN=Some CA`. `x509-parser` can, too, but keeps a table of all identifiers there are for it.
///
/// It may be the name in a certificate that anybody shows, and goes to logs and terminals: control characters are escaped.
fn readable(name: &X509Name<'_>) -> String {
    // X.520, RFC 4519 and PKCS #9: what CAs have in their names. Others are shown by their numbers.
    const SHORT: [(&str, &str); 13] = [
        ("2.5.4.3", "CN"),
        ("2.5.4.4", "SN"),
        ("2.5.4.5", "serialNumber"),
        ("2.5.4.6", "C"),
        ("2.5.4.7", "L"),
        ("2.5.4.8", "ST"),
        ("2.5.4.9", "street"),
        ("2.5.4.10", "O"),
        ("2.5.4.11", "OU"),
        ("2.5.4.12", "title"),
        ("0.9.2342.19200300.100.1.1", "UID"),
        ("0.9.2342.19200300.100.1.25", "DC"),
        ("1.2.840.113549.1.9.1", "emailAddress"),
    ];
    let mut text = String::new();
    for rdn in name.iter_rdn() {
        for (index, attribute) in rdn.iter().enumerate() {
            text += match index {
                0 if text.is_empty() => "",
                0 => ", ",
                _ => " + ",
            };
            let kind = attribute.attr_type().to_id_string();
            text += SHORT.iter().find(|(id, _)| *id == kind).map_or(&*kind, |(_, short)| short);
            text.push('=');
            let value = attribute.attr_value();
            match utf8(value.tag().0, value.data) {
                Some(utf8) => String::from_utf8_lossy(&utf8).chars().for_each(|c| match c {
                    c if c.is_control() => text += &format!("\\{:02X}", u32::from(c)),
                    c => text.push(c),
                }),
                None => text.extend(std::iter::once("#".into()).chain(value.data.iter().map(|byte| format!("{byte:02X}")))),
            }
        }
    }
    text
}

/// OpenSSL's name hash since 1.0: SHA-1 over the canonical encoding, its first four bytes read as little endian
/// (crypto/x509/x_name.c, `x509_name_canon`, and x509_cmp.c, `X509_NAME_hash_ex`).
fn subject_hash(name: &X509Name<'_>) -> u32 {
    let mut canonical = Vec::new();
    for rdn in name.iter_rdn() {
        let mut attributes: Vec<Vec<u8>> = rdn
            .iter()
            .map(|attribute| {
                let value = attribute.attr_value();
                let mut pair = der::element(der::OBJECT_IDENTIFIER, attribute.attr_type().as_bytes());
                pair.extend(canonical_value(value.tag().0, value.data));
                der::element(der::SEQUENCE, &pair)
            })
            .collect();
        // DER sorts a SET OF; the values have just changed, so it has to be sorted anew.
        crate::in_order::sort_by(&mut attributes, Ord::cmp);
        canonical.extend(der::element(der::SET, &attributes.concat()));
    }
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    let first = hash.as_ref().first_chunk::<4>().expect("SHA-1 has 20 bytes");
    u32::from_le_bytes(*first)
}

/// Character strings become lower-case (ASCII only) UTF8Strings with single inner spaces; any other type stays as it is.
fn canonical_value(tag: u32, content: &[u8]) -> Vec<u8> {
    match utf8(tag, content) {
        Some(utf8) => der::element(der::UTF8_STRING, &collapse(&utf8)),
        None => der::element(tag as u8, content),
    }
}

/// What a character string says, as OpenSSL reads it; `None` for any other type.
fn utf8(tag: u32, content: &[u8]) -> Option<Vec<u8>> {
    const UTF8: u32 = 12;
    const PRINTABLE: u32 = 19;
    const T61: u32 = 20;
    const IA5: u32 = 22;
    const VISIBLE: u32 = 26;
    const UNIVERSAL: u32 = 28;
    const BMP: u32 = 30;
    Some(match tag {
        UTF8 => content.to_vec(),
        // OpenSSL reads all one-byte strings as Latin-1.
        PRINTABLE | T61 | IA5 | VISIBLE => content.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes(),
        BMP => code_points(content.chunks_exact(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))),
        UNIVERSAL => code_points(content.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]))),
        _ => return None,
    })
}

fn code_points(points: impl Iterator<Item = u32>) -> Vec<u8> {
    points.map(|point| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>().into_bytes()
}

/// Without leading and trailing white space, each inner run of it one space, ASCII letters lower case.
fn collapse(text: &[u8]) -> Vec<u8> {
    // C's isspace, which has a vertical tab more than Rust's is_ascii_whitespace.
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let words = text.split(is_space).filter(|word| !word.is_empty());
    words.map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b' ')
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn openssl(dir: &Path, arguments: &[&str]) -> String {
        let output = Command::new("openssl").current_dir(dir).args(arguments).output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn self_signed(dir: &Path, subject: &str, mask: &str, extra: &[&str]) -> String {
        std::fs::write(dir.join("req.cnf"), format!("[req]\ndistinguished_name=dn\nstring_mask={mask}\n[dn]\n")).unwrap();
        let mut arguments = vec!["req", "-x509", "-config", "req.cnf", "-utf8", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        arguments.extend(["-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", subject]);
        arguments.extend(extra);
        openssl(dir, &arguments);
        std::fs::read_to_string(dir.join("cert.pem")).unwrap()
    }

    #[test]
    fn the_subject_hash_is_the_one_that_openssl_computes() {
        let dir = tempfile::tempdir().unwrap();
        let cases = [
            ("/CN=plain", "utf8only"),
            ("/CN=private-registry CA 1 a1b2c3", "utf8only"),
            ("/CN=UPPER and Lower", "utf8only"),
            ("/CN=  leading, inner    and trailing   ", "utf8only"),
            ("/CN=tab\tand\u{b}vertical tab \t x", "utf8only"),
            ("/C=DE/ST=Bayern/L=M\u{fc}nchen/O=\u{c4}rger \u{20ac} & S\u{f6}hne/OU=Pr\u{fc}fstelle/CN=Stra\u{df}e", "utf8only"),
            ("/CN=\u{65e5}\u{672c}\u{8a9e} \u{1f433}", "utf8only"),
            ("/O=One+OU=Two+CN=Three/CN=last", "utf8only"),
            ("/CN=zz+O=a+OU=MM", "utf8only"),
            ("/O=First/O=Second/OU=Third/DC=Example/DC=COM/emailAddress=Admin@Example.COM", "utf8only"),
            ("/CN=Printable String 1", "default"),
            ("/CN=T61 L\u{e4}tin", "default"),
            ("/CN=BMP \u{20ac} Upper", "default"),
            ("/CN=universal \u{1f433}", "MASK:0x100"),
            ("/serialNumber=AB 12/CN=x", "default"),
            ("/", "utf8only"),
        ];
        for (subject, mask) in cases {
            let text = self_signed(dir.path(), subject, mask, &[]);
            let expected = openssl(dir.path(), &["x509", "-in", "cert.pem", "-noout", "-subject_hash"]);
            assert_eq!(format!("{:08x}", Certificate::parse_pem(&text).unwrap().subject_hash()), expected.trim(), "{subject} ({mask})");
        }
    }

    #[test]
    fn what_openssl_says_of_a_certificate_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let names = "subjectAltName=DNS:a.example,DNS:b.example,IP:192.168.0.1,IP:fd00::1,email:x@y.example";
        let text =
            self_signed(dir.path(), "/O=Org/CN=Some CA", "utf8only", &["-addext", names, "-addext", "basicConstraints=critical,CA:TRUE"]);
        let certificate = Certificate::parse_pem(&text).unwrap();
        assert_eq!(certificate.san_names(), ["a.example", "b.example", "192.168.0.1", "fd00::1"]);
        assert!(certificate.is_ca());
        assert_eq!(certificate.subject(), "O=Org, CN=Some CA");
        assert_eq!(certificate.not_after() - certificate.not_before(), 2 * 24 * 60 * 60);
        let printed = openssl(dir.path(), &["x509", "-in", "cert.pem", "-noout", "-fingerprint", "-sha256"]);
        let printed = printed.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
        assert_eq!(certificate.fingerprint(), printed);
        assert_eq!(openssl(dir.path(), &["x509", "-in", "cert.pem"]), certificate.pem());
        openssl(dir.path(), &["pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "spki.der"]);
        assert_eq!(std::fs::read(dir.path().join("spki.der")).unwrap(), certificate.public_key_spki_der());

        let plain = self_signed(dir.path(), "/CN=x", "utf8only", &[]);
        assert!(!Certificate::parse_pem(&plain).unwrap().is_ca());
        let both = Certificate::parse_bundle(&format!("{text}\n{plain}")).unwrap();
        assert_eq!(both.iter().map(Certificate::subject).collect::<Vec<_>>(), ["O=Org, CN=Some CA", "CN=x"]);
        assert_eq!(Certificate::parse_pem(&format!("{text}{plain}")), Err(pem::PemError::TooMany(2).into()));

        let key = std::fs::read_to_string(dir.path().join("key.pem")).unwrap();
        for mixed in [format!("{text}{key}"), format!("{key}{text}"), key] {
            assert_eq!(Certificate::parse_bundle(&mixed), Err(pem::PemError::PrivateKey.into()));
        }
    }

    #[test]
    fn a_name_is_shown_as_openssl_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let everyday = "/DC=org/DC=example/C=CN/ST=北京/L=Xī'an/street=1 Main St/O=Ärger & Söhne, Inc./OU=a+OU=b/title=x/SN=y/serialNumber=0042/UID=u7";
        for name in [
            "/CN=x",
            &format!("{everyday}/CN=Some CA"),
            "/CN=mail/emailAddress=ca@example.org",
            "/CN=x/2.5.4.97=NTRDE-HRB 1",
            "/CN=a\u{1b}[2Jb\nc\u{7f}",
        ] {
            let text = self_signed(dir.path(), name, "utf8only", &["-multivalue-rdn"]);
            let as_we = ["x509", "-in", "cert.pem", "-noout", "-subject", "-nameopt", "sep_comma_plus_space,sname,utf8,esc_ctrl"];
            let expected = openssl(dir.path(), &as_we).trim().trim_start_matches("subject=").replace("organizationIdentifier", "2.5.4.97");
            assert_eq!(Certificate::parse_pem(&text).unwrap().subject(), expected);
        }
        let unreadable =
            der::element(der::SEQUENCE, &der::element(der::SET, &der::element(der::SEQUENCE, b"\x06\x03\x55\x04\x03\x04\x02\x00\xab")));
        assert_eq!(readable(&X509Name::from_der(&unreadable).unwrap().1), "CN=#00AB");
        // OpenSSL leaves C1 as it is; a terminal obeys it.
        let c1 = self_signed(dir.path(), "/CN=a\u{9b}2Jb", "utf8only", &[]);
        assert_eq!(Certificate::parse_pem(&c1).unwrap().subject(), "CN=a\\9B2Jb");
    }

    #[test]
    fn a_truncated_or_lengthened_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let der = Certificate::parse_pem(&self_signed(dir.path(), "/CN=x", "utf8only", &[])).unwrap().der().to_vec();
        for length in [0, 1, 10, der.len() / 2, der.len() - 1] {
            let text = pem::encode(LABEL, &der[..length]);
            assert_eq!(Certificate::parse_pem(&text), Err(CertificateError::NotX509), "{length} bytes");
        }
        let text = pem::encode(LABEL, &[der, vec![0]].concat());
        assert_eq!(Certificate::parse_pem(&text), Err(CertificateError::NotX509));
    }
}
