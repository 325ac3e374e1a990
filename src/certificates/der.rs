//! As much of a DER writer as name constraints and the canonical subject need.

pub(super) const OCTET_STRING_CONTEXT_7: u8 = 0x87;
pub(super) const DNS_NAME_CONTEXT_2: u8 = 0x82;
pub(super) const CONSTRUCTED_CONTEXT_0: u8 = 0xa0;
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// One element: identifier octet, definite length, content. Only tags below 31, which one octet holds.
pub(super) fn element(identifier: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![identifier];
    if content.len() < 0x80 {
        out.push(content.len() as u8);
    } else {
        let length = content.len().to_be_bytes();
        let significant = &length[length.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_from_128_on_take_the_long_form() {
        assert_eq!(element(SEQUENCE, &[0; 127])[..2], [0x30, 0x7f]);
        assert_eq!(element(SEQUENCE, &[0; 128])[..3], [0x30, 0x81, 0x80]);
        assert_eq!(element(SEQUENCE, &[0; 300])[..4], [0x30, 0x82, 0x01, 0x2c]);
    }
}
