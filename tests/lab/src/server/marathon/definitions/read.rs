//! Reading JSON as Marathon's generated readers do: a table says which fields there are, and what it does not name is
//! dropped without a word. Faults have the texts of Marathon's JSON library.

use serde_json::{Map, Value};

/// What a value must be.
pub(super) enum Kind {
    /// A string for which the check finds no fault.
    Text(fn(&str) -> Option<&'static str>),
    /// A number, kept with a decimal point.
    Real(f64, f64),
    /// A whole number.
    Whole(i64, i64),
    Flag,
    Choice(&'static [&'static str]),
    /// A list of so many elements or more.
    List(&'static Kind, usize),
    /// An object whose keys are data.
    Table(&'static Kind),
    Record(&'static [Field]),
    /// A record read by the library's other kind of reader, which words its faults differently.
    Strict(&'static [Field]),
    /// Whatever has no kind of its own.
    Own(fn(&mut Reading, &Value, &str) -> Option<Value>),
}

/// Whether a field must be there.
pub(super) enum Need {
    Required,
    Optional,
    /// Left out of what is stored when it is empty.
    Filled,
    Or(fn() -> Value),
    /// Known, but nothing of it is stored.
    Ignored,
}

/// A field of a record. The order of a table is the order in which Marathon answers.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) need: Need,
}

pub(super) const fn required(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, need: Need::Required }
}

pub(super) const fn optional(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, need: Need::Optional }
}

pub(super) const fn filled(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, need: Need::Filled }
}

pub(super) const fn or(name: &'static str, kind: Kind, default: fn() -> Value) -> Field {
    Field { name, kind, need: Need::Or(default) }
}

pub(super) const fn ignored(name: &'static str) -> Field {
    Field { name, kind: Kind::Flag, need: Need::Ignored }
}

pub(super) const TEXT: Kind = Kind::Text(|_| None);
pub(super) const FULL_TEXT: Kind = Kind::Text(|text| text.is_empty().then_some("error.minLength"));
pub(super) const PORT: Kind = Kind::Whole(0, 65535);
pub(super) const COUNT: Kind = Kind::Whole(0, i32::MAX as i64);
pub(super) const AMOUNT: Kind = Kind::Real(0.0, f64::MAX);

/// What came up while reading.
#[derive(Default)]
pub(super) struct Reading {
    /// Path and text.
    pub(super) faults: Vec<(String, String)>,
    /// Paths of what was given and does not count.
    pub(super) dropped: Vec<String>,
}

impl Reading {
    pub(super) fn fault(&mut self, path: &str, text: impl Into<String>) -> Option<Value> {
        self.faults.push((path.to_owned(), text.into()));
        None
    }

    /// The given fields of a record, read; fields that are missing are only missed where they are required.
    pub(super) fn given(&mut self, fields: &[Field], value: &Value, path: &str) -> Map<String, Value> {
        let mut read = Map::new();
        let object = value.as_object();
        if object.is_none() && !fields.iter().any(|field| matches!(field.need, Need::Required)) {
            self.dropped.push(path.to_owned());
        }
        for field in fields {
            let at = format!("{path}/{}", field.name);
            match object.and_then(|object| object.get(field.name)) {
                None if matches!(field.need, Need::Required) => {
                    let why = if object.is_some() {
                        format!("'{}' is undefined on object: {value}", field.name)
                    } else {
                        format!("{value} is not an object")
                    };
                    self.fault(&at, why);
                }
                None => {}
                Some(Value::Null) if !matches!(field.need, Need::Required) => {}
                Some(_) if matches!(field.need, Need::Ignored) => {}
                Some(value) => {
                    if let Some(value) = self.value(&field.kind, value, &at) {
                        read.insert(field.name.to_owned(), value);
                    }
                }
            }
        }
        for key in object.into_iter().flat_map(Map::keys) {
            if !fields.iter().any(|field| field.name == key) {
                self.dropped.push(format!("{path}/{key}"));
            }
        }
        read
    }

    /// A value of that kind in the form in which it is stored.
    pub(super) fn value(&mut self, kind: &Kind, value: &Value, path: &str) -> Option<Value> {
        match (kind, value) {
            (Kind::Text(check), Value::String(text)) => match check(text) {
                Some(fault) => self.fault(path, fault),
                None => Some(value.clone()),
            },
            (Kind::Choice(known), Value::String(text)) => {
                if known.contains(&text.as_str()) {
                    Some(value.clone())
                } else {
                    self.fault(path, "error.unknown.enum.literal")
                }
            }
            (Kind::Text(_) | Kind::Choice(_), _) => self.fault(path, "error.expected.jsstring"),
            (Kind::Real(least, most), Value::Number(number)) => {
                let number = number.as_f64().unwrap_or_default();
                self.bounded(number < *least, number > *most, path).then(|| number.into())
            }
            (Kind::Whole(least, most), Value::Number(number)) => match whole(number) {
                Some(number) => self.bounded(number < *least, number > *most, path).then(|| number.into()),
                None => self.fault(path, "error.expected.int"),
            },
            (Kind::Real(..) | Kind::Whole(..), _) => self.fault(path, "error.expected.jsnumber"),
            (Kind::Flag, Value::Bool(_)) => Some(value.clone()),
            (Kind::Flag, _) => self.fault(path, "error.expected.jsboolean"),
            (Kind::List(kind, least), Value::Array(items)) => {
                if items.len() < *least {
                    return self.fault(path, "error.minLength");
                }
                let read = items.iter().enumerate().filter_map(|(index, item)| self.value(kind, item, &format!("{path}({index})")));
                Some(Value::Array(read.collect()))
            }
            (Kind::List(..), _) => self.fault(path, "error.expected.jsarray"),
            (Kind::Table(kind), Value::Object(entries)) => {
                let read = entries.iter().filter_map(|(key, item)| Some((key.clone(), self.value(kind, item, &format!("{path}/{key}"))?)));
                Some(Value::Object(read.collect()))
            }
            (Kind::Table(_), _) => self.fault(path, "error.expected.jsobject"),
            (Kind::Strict(fields), Value::Object(object)) => {
                let missing: Vec<&Field> =
                    fields.iter().filter(|field| matches!(field.need, Need::Required) && !object.contains_key(field.name)).collect();
                for field in &missing {
                    self.fault(&format!("{path}/{}", field.name), "error.path.missing");
                }
                if missing.is_empty() { Some(self.record(fields, value, path)) } else { None }
            }
            (Kind::Strict(_), _) => self.fault(path, "error.expected.jsobject"),
            (Kind::Record(fields), _) => Some(self.record(fields, value, path)),
            (Kind::Own(read), _) => read(self, value, path),
        }
    }

    fn record(&mut self, fields: &[Field], value: &Value, path: &str) -> Value {
        let given = self.given(fields, value, path);
        Value::Object(complete(fields, given))
    }

    fn bounded(&mut self, below: bool, above: bool, path: &str) -> bool {
        if below {
            self.fault(path, "error.min");
        }
        if above {
            self.fault(path, "error.max");
        }
        !below && !above
    }
}

/// `2.0` is a whole number too.
fn whole(number: &serde_json::Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let real = number.as_f64()?;
        #[expect(clippy::cast_possible_truncation, reason = "checked to be whole; what is out of range saturates and fails the bounds")]
        (real.fract() == 0.0).then_some(real as i64)
    })
}

/// Puts a record's fields in order, with defaults for those that are missing and without those that say nothing.
pub(super) fn complete(fields: &[Field], mut given: Map<String, Value>) -> Map<String, Value> {
    let mut all = Map::new();
    for field in fields {
        let value = match (given.remove(field.name), &field.need) {
            (None, Need::Or(default)) => default(),
            (Some(value), Need::Filled) if is_empty(&value) => continue,
            (Some(value), _) => value,
            (None, _) => continue,
        };
        all.insert(field.name.to_owned(), value);
    }
    all
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
