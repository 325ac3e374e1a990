//! Strict PEM: nothing but blocks and white space, so that nothing rides along unseen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Why a text is not the PEM that was asked for. No variant carries any of the text: it may be a private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// No block at all.
    #[error("there is no -----BEGIN {0}----- block in it")]
    Missing(&'static str),
    /// A block of another kind; private keys have a case of their own.
    #[error("it holds a block that is no {0}; only {0} blocks belong here")]
    OtherLabel(&'static str),
    /// A private key where only public data belongs.
    #[error("it holds a private key, which does not belong here; take it out, and replace the key if others have seen it")]
    PrivateKey,
    /// Text outside of blocks.
    #[error("there is text before, between or after the PEM blocks; remove it")]
    Garbage,
    /// The block has no end line or its base64 is broken.
    #[error("a PEM block is cut off or its base64 is damaged; copy the whole file again")]
    Damaged,
    /// More than one block.
    #[error("there are {0} blocks where one is expected")]
    TooMany(usize),
}

/// The contents of all blocks; every one must be a `label` block.
pub(super) fn decode_all(text: &str, label: &'static str) -> Result<Vec<Vec<u8>>, PemError> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    while let Some(line) = lines.next() {
        let found = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")).ok_or(PemError::Garbage)?;
        if found != label {
            return Err(if found.contains("PRIVATE KEY") { PemError::PrivateKey } else { PemError::OtherLabel(label) });
        }
        blocks.push(block_content(&mut lines, label)?);
    }
    if blocks.is_empty() { Err(PemError::Missing(label)) } else { Ok(blocks) }
}

fn block_content<'a>(lines: &mut impl Iterator<Item = &'a str>, label: &str) -> Result<Vec<u8>, PemError> {
    let mut base64 = String::new();
    for line in lines {
        if let Some(end) = line.strip_prefix("-----END ").and_then(|l| l.strip_suffix("-----")) {
            return if end == label { STANDARD.decode(base64).map_err(|_| PemError::Damaged) } else { Err(PemError::Damaged) };
        }
        base64.push_str(line);
    }
    Err(PemError::Damaged)
}

/// The content of the only block.
pub(super) fn decode_one(text: &str, label: &'static str) -> Result<Vec<u8>, PemError> {
    let mut blocks = decode_all(text, label)?;
    match (blocks.pop(), blocks.len()) {
        (Some(block), 0) => Ok(block),
        (_, others) => Err(PemError::TooMany(others + 1)),
    }
}

/// One block, base64 in lines of 64 characters as RFC 7468 wants it.
pub(super) fn encode(label: &str, content: &[u8]) -> String {
    let base64 = STANDARD.encode(content);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        for length in [1, 47, 48, 49, 500] {
            let content: Vec<u8> = (0..length).map(|i| i as u8).collect();
            assert_eq!(decode_one(&encode("CERTIFICATE", &content), "CERTIFICATE"), Ok(content));
        }
    }

    #[test]
    fn anything_beside_the_block_is_refused() {
        let block = encode("CERTIFICATE", b"content");
        let key = encode("EC PRIVATE KEY", b"secret");
        assert_eq!(decode_one("", "CERTIFICATE"), Err(PemError::Missing("CERTIFICATE")));
        assert_eq!(decode_one(&format!("{block}trailing"), "CERTIFICATE"), Err(PemError::Garbage));
        assert_eq!(decode_one(&format!("subject: x\n{block}"), "CERTIFICATE"), Err(PemError::Garbage));
        assert_eq!(decode_one(&format!("{block}{block}"), "CERTIFICATE"), Err(PemError::TooMany(2)));
        assert_eq!(decode_one(&format!("{block}{key}"), "CERTIFICATE"), Err(PemError::PrivateKey));
        assert_eq!(decode_one(&encode("X509 CRL", b"crl"), "CERTIFICATE"), Err(PemError::OtherLabel("CERTIFICATE")));
        assert_eq!(decode_one(&block[..block.len() - 10], "CERTIFICATE"), Err(PemError::Damaged));
        assert_eq!(decode_one(&block.replace("Y29", "Y$9"), "CERTIFICATE"), Err(PemError::Damaged));
    }
}
