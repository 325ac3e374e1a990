//! JSON to types.
//!
//! All that is read goes one way, by [`of_text`] or [`of_bytes`]: what is read in two ways is in the program twice, for every type.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Reads a JSON text; see [`of_bytes`].
///
/// # Errors
/// As `serde_json` says.
pub fn of_text<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    of_bytes(text.as_bytes())
}

/// Reads JSON in which whatever has named fields is an object.
///
/// `serde_json` alone takes a list of all the fields as well. No API that we ask answers so, and the code for it, of every type, is 87 KB.
///
/// # Errors
/// As `serde_json` says.
pub fn of_bytes<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = T::deserialize(ByName(&mut json))?;
    json.end().map(|()| read)
}

/// Reads what has been read as JSON of any form already; see [`of_bytes`].
///
/// # Errors
/// As `serde_json` says.
pub(crate) fn of_value<T: DeserializeOwned>(value: &serde_json::Value) -> serde_json::Result<T> {
    T::deserialize(ByName(value))
}

/// Whatever serde hands on while it reads; a struct is asked for as an object, and the rest as it is.
struct ByName<T>(T);

/// Calls the method of what is within, with a visitor that needs no care: nothing lies deeper.
macro_rules! flat {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(visitor)
        })*
    };
}

/// Calls the method of what is within, with a visitor that goes on by name.
macro_rules! deep {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method(ByName(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ByName<D> {
    type Error = D::Error;

    flat! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_unit deserialize_identifier deserialize_ignored_any
    }
    deep! { deserialize_any deserialize_option deserialize_seq deserialize_map }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(ByName(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, ByName(visitor))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(length, ByName(visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, length: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple_struct(name, length, ByName(visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, ByName(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

/// Hands a value to the visitor within.
macro_rules! value {
    ($($method:ident: $of:ty,)*) => {
        $(fn $method<E: Error>(self, value: $of) -> Result<V::Value, E> {
            self.0.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for ByName<V> {
    type Value = V::Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(out)
    }

    value! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(ByName(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(ByName(deserializer))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(ByName(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(ByName(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(ByName(data))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for ByName<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(ByName(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for ByName<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(ByName(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for ByName<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(ByName(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for ByName<A> {
    type Error = A::Error;
    type Variant = ByName<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (variant, content) = self.0.variant_seed(seed)?;
        Ok((variant, ByName(content)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for ByName<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(ByName(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, ByName(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.0.newtype_variant_seed(Fields(visitor))
    }
}

/// The fields of a variant, which are an object, too.
struct Fields<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Fields<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_map(ByName(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pair {
        left: u32,
        #[serde(default)]
        right: Option<Box<Pair>>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        Bare,
        One(Pair),
        Two(i8, bool),
        Named { pair: Pair },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        A { list: Vec<Pair> },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        kinds: Vec<Kind>,
        tagged: Tagged,
        map: BTreeMap<String, Pair>,
        tuple: (u8, String, f64),
        wrapped: Wrapped,
        anything: Value,
        none: Option<Pair>,
        letter: char,
        #[serde(flatten)]
        flat: Flat,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Pair);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Flat {
        below: Pair,
        minus: i64,
    }

    fn everything() -> Everything {
        let pair = |left| Pair { left, right: Some(Box::new(Pair { left: left + 1, right: None })) };
        Everything {
            kinds: vec![Kind::Bare, Kind::One(pair(1)), Kind::Two(-1, true), Kind::Named { pair: pair(3) }],
            tagged: Tagged::A { list: vec![pair(5), pair(7)] },
            map: BTreeMap::from([("ü\n".into(), pair(9))]),
            tuple: (0, "a\u{1F600}".into(), 1.5),
            wrapped: Wrapped(pair(11)),
            anything: json!({ "a": [null, true, -1, 1.25, u64::MAX, { "b": "c" }] }),
            none: None,
            letter: 'ß',
            flat: Flat { below: pair(13), minus: i64::MIN },
        }
    }

    #[test]
    fn all_that_serde_knows_is_read_as_it_was_written() {
        let text = serde_json::to_string_pretty(&everything()).unwrap();
        assert_eq!(of_text::<Everything>(&text).unwrap(), everything());
        assert_eq!(of_value::<Everything>(&serde_json::to_value(everything()).unwrap()).unwrap(), everything());
    }

    #[test]
    fn a_list_is_no_object_at_any_depth() {
        assert_eq!(serde_json::from_str::<Pair>("[1, [2, null]]").unwrap().left, 1, "serde_json has changed: is this still needed?");
        for list in ["[1, null]", r#"{"left": 1, "right": [2, null]}"#] {
            let error = of_text::<Pair>(list).unwrap_err().to_string();
            assert!(error.contains("invalid type: sequence, expected struct Pair"), "{error}");
        }
        for list in [r#"{"One": [1, null]}"#, r#"{"Named": [{"left": 1}]}"#, r#"{"Named": {"pair": [1, null]}}"#] {
            assert!(of_text::<Kind>(list).unwrap_err().to_string().contains("invalid type: sequence"));
        }
        assert!(of_text::<Wrapped>("[1, null]").is_err() && of_text::<BTreeMap<String, Pair>>(r#"{"a": [1, null]}"#).is_err());
    }

    #[test]
    fn what_follows_a_text_or_lies_too_deep_is_refused() {
        assert!(of_text::<Pair>(r#"{"left": 1} {}"#).unwrap_err().to_string().contains("trailing characters"));
        let deep = format!("{}1{}", r#"{"left": 1, "right": "#.repeat(2000), "}".repeat(2000));
        assert!(of_text::<Pair>(&deep).unwrap_err().to_string().contains("recursion limit"));
    }
}
