//! Long lists, read element by element as they come: an answer that describes 10,000 agents is never in memory as a whole.

/// Finds the objects in the lists of an answer: in a list that is the whole answer, or in lists that are fields of an object.
///
/// It looks at brackets and strings alone. Whether an element is well-formed is seen by whoever reads it.
#[derive(Default)]
pub(super) struct Elements {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Depth of the list that is being read.
    list: Option<usize>,
    /// The last text at the depth of the fields, which before a list is its name.
    field: Vec<u8>,
    element: Vec<u8>,
    /// Name of the field without which the answer is none; empty where the answer is the list.
    required: &'static str,
    has_required: bool,
    /// Brackets were opened, and all are closed again.
    whole: bool,
    broken: bool,
}

/// Names of fields are short.
const LONGEST_FIELD: usize = 64;

impl Elements {
    /// For an answer that has this list.
    pub(super) fn new(required: &'static str) -> Self {
        Self { required, ..Self::default() }
    }

    /// Calls `each` with the name of the field and the element for all that end in this chunk.
    pub(super) fn feed<E>(&mut self, chunk: &[u8], each: &mut impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        // Where the part of the chunk begins that belongs to the element at hand.
        let mut begin = 0;
        for (at, byte) in chunk.iter().copied().enumerate() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                } else if self.depth == 1 && self.list.is_none() && self.field.len() < LONGEST_FIELD {
                    self.field.push(byte);
                }
                continue;
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    if self.depth == 1 && self.list.is_none() {
                        self.field.clear();
                    }
                }
                b'{' | b'[' => {
                    if byte == b'[' && self.list.is_none() && self.depth <= 1 {
                        self.list = Some(self.depth + 1);
                        self.has_required |= self.field == self.required.as_bytes();
                    } else if byte == b'{' && self.list == Some(self.depth) {
                        (begin, self.element) = (at, Vec::new());
                    }
                    self.depth += 1;
                    self.broken |= self.whole;
                }
                b'}' | b']' => {
                    let Some(depth) = self.depth.checked_sub(1) else {
                        self.broken = true;
                        continue;
                    };
                    self.depth = depth;
                    match self.list {
                        Some(list) if depth == list && byte == b'}' => {
                            self.element.extend_from_slice(&chunk[begin..=at]);
                            each(std::str::from_utf8(&self.field).unwrap_or_default(), &self.element)?;
                            self.element.clear();
                        }
                        Some(list) if depth + 1 == list => self.list = None,
                        _ => {}
                    }
                    self.whole |= depth == 0;
                }
                _ => {}
            }
        }
        if self.list.is_some_and(|list| self.depth > list) {
            self.element.extend_from_slice(&chunk[begin..]);
        }
        Ok(())
    }

    /// Whether the answer has come to its end, and is what it should be.
    pub(super) fn is_whole(&self) -> bool {
        self.whole && !self.broken && self.has_required
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(text: &str, chunk: usize) -> (Vec<(String, Value)>, bool) {
        let required = if text.contains("slaves") { "slaves" } else { "" };
        let (mut elements, mut found) = (Elements::new(required), Vec::new());
        for chunk in text.as_bytes().chunks(chunk) {
            let mut each = |field: &str, element: &[u8]| -> serde_json::Result<()> {
                found.push((field.to_string(), serde_json::from_slice(element)?));
                Ok(())
            };
            elements.feed(chunk, &mut each).unwrap();
        }
        (found, elements.is_whole())
    }

    #[test]
    fn elements_are_found_wherever_an_answer_is_cut() {
        let nasty = json!({ "a": "]}[{\"\\", "b": [1, { "c": [] }], "d": {} });
        let lists = json!({ "other": { "x": [1] }, "slaves": [nasty, {}, 7, "x", [{}]], "empty": [], "more": [{ "é": "ü" }], "end": "x" });
        let list = json!([nasty, { "e": 1 }]);
        for chunk in 1..40 {
            let (found, whole) = read(&lists.to_string(), chunk);
            let expected = [("slaves", nasty.clone()), ("slaves", json!({})), ("more", json!({ "é": "ü" }))];
            assert_eq!(found, expected.map(|(field, element)| (field.to_string(), element)), "{chunk}");
            assert!(whole);
            let (found, whole) = read(&list.to_string(), chunk);
            assert_eq!(found.into_iter().map(|(_, element)| element).collect::<Vec<_>>(), *list.as_array().unwrap());
            assert!(whole);
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_or_no_list_at_all_is_not_whole() {
        for text in ["", "{\"slaves\":[{\"a\":1}", "{\"slaves\":[{\"a\":1}]", "x", "]", "{}}", "{}{\"slaves\":[]}", "\"{}"] {
            assert!(!read(text, 3).1, "{text}");
        }
        assert!(read("{\"slaves\":[]}", 1).1 && read(" [] ", 1).1);
        assert!(!read("{}", 1).1 && !read("{\"x\":\"slaves\",\"y\":[]}", 1).1, "without the list it is no answer")
    }
}
