//! Options: defaults out of a package's schema, merging, and validation with the errors of Cosmos' validator.

use std::collections::BTreeSet;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{Draft, ValidationError};
use serde_json::{Map, Value, json};

use super::error::Error;

const KEYWORD_ARRAYS: [&str; 1] = ["required"];
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// The defaults of a schema as an object. A property's own default hides those of its children; `$ref` is not followed.
pub(crate) fn defaults(schema: &Value) -> Value {
    default_of(&json!({ "properties": schema.get("properties").unwrap_or(&Value::Null) })).unwrap_or_else(|| json!({}))
}

fn default_of(schema: &Value) -> Option<Value> {
    if let Some(default) = schema.get("default") {
        return Some(default.clone());
    }
    let fields: Map<String, Value> =
        schema.get("properties")?.as_object()?.iter().filter_map(|(name, property)| Some((name.clone(), default_of(property)?))).collect();
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// Objects are merged key by key; anything else in `over` replaces what is there.
pub(crate) fn merge(base: Value, over: &Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = base.get_mut(key).map_or_else(|| value.clone(), |old| merge(old.take(), value));
                base.insert(key.clone(), merged);
            }
            Value::Object(base)
        }
        (_, over) => over.clone(),
    }
}

/// Defaults merged with what the user gave, held against the schema. Empty options are not validated at all, as in Cosmos.
///
/// # Errors
/// `OptionsNotAllowed` without a schema, `JsonSchemaMismatch`, or the 500 of a schema that is none.
pub(crate) fn resolve(schema: Option<&Value>, given: &Value) -> Result<Value, Error> {
    let is_empty = |options: &Value| options.as_object().is_some_and(Map::is_empty);
    let Some(schema) = schema else {
        if is_empty(given) {
            return Ok(json!({}));
        }
        return Err(Error::new("OptionsNotAllowed", "No schema available to validate the provided options"));
    };
    let merged = merge(defaults(schema), given);
    if !is_empty(&merged) {
        validate(schema, &merged)?;
    }
    Ok(merged)
}

fn validate(schema: &Value, options: &Value) -> Result<(), Error> {
    let mut faults = Vec::new();
    find_faults(schema, "", &mut faults);
    if !faults.is_empty() {
        return Err(invalid_schema(&Value::Array(faults)));
    }
    let validator = jsonschema::options().with_draft(Draft::Draft4).should_validate_formats(true).build(schema);
    let validator =
        validator.map_err(|error| invalid_schema(&json!([{ "level": "error", "message": error.to_string(), "domain": "syntax" }])))?;
    let errors = reports(schema, options, validator.iter_errors(options).collect());
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::new("JsonSchemaMismatch", "Options JSON failed validation").data(json!({ "errors": errors })))
}

fn invalid_schema(faults: &Value) -> Error {
    Error::unhandled(format!("fatal: invalid JSON Schema, cannot continue\nSyntax errors:\n{faults:#}\n    level: \"fatal\"\n"))
}

/// What Cosmos' validator refuses in a schema where others are lenient.
fn find_faults(schema: &Value, pointer: &str, faults: &mut Vec<Value>) {
    let Some(fields) = schema.as_object() else { return };
    let fault = |keyword: &str, message: String, extra: Value| {
        let at = json!({ "loadingURI": "#", "pointer": pointer });
        let head = json!({ "level": "error", "message": message, "domain": "syntax", "schema": at, "keyword": keyword });
        merge(head, &extra)
    };
    if let Some(found) = fields.get("type").and_then(Value::as_str).filter(|found| !TYPES.contains(found)) {
        let message = format!("\"{found}\" is not a valid primitive type (valid values are: [{}])", TYPES.join(", "));
        faults.push(fault("type", message, json!({ "found": found, "valid": TYPES })));
    }
    for keyword in KEYWORD_ARRAYS {
        if let Some(found) = fields.get(keyword).filter(|found| !found.is_array()) {
            let found = type_name(found);
            let message = format!("value has incorrect type (found {found}, expected one of [array])");
            faults.push(fault(keyword, message, json!({ "found": found, "expected": ["array"] })));
        }
    }
    if let Some(pattern) = fields.get("pattern").and_then(Value::as_str).filter(|pattern| !is_ecma(pattern)) {
        let message = format!("string \"{pattern}\" is not a valid ECMA 262 regular expression");
        faults.push(fault("pattern", message, json!({ "value": pattern })));
    }
    for group in ["properties", "definitions", "patternProperties"] {
        for (name, property) in fields.get(group).and_then(Value::as_object).into_iter().flatten() {
            find_faults(property, &format!("{pointer}/{group}/{}", escape(name)), faults);
        }
    }
    for keyword in ["items", "additionalProperties", "not"] {
        find_faults(fields.get(keyword).unwrap_or(&Value::Null), &format!("{pointer}/{keyword}"), faults);
    }
    for keyword in ["oneOf", "anyOf", "allOf"] {
        for (index, schema) in fields.get(keyword).and_then(Value::as_array).into_iter().flatten().enumerate() {
            find_faults(schema, &format!("{pointer}/{keyword}/{index}"), faults);
        }
    }
}

/// Lookahead and non-capturing groups only: the engine knows neither lookbehind nor inline flags.
fn is_ecma(pattern: &str) -> bool {
    pattern.match_indices("(?").all(|(at, _)| pattern[at + 2..].starts_with([':', '=', '!']))
}

/// The errors of one level in the validator's order. Where an object is wrong in itself, its children are not looked at.
fn reports(schema: &Value, options: &Value, errors: Vec<ValidationError<'_>>) -> Vec<Value> {
    let wrong: BTreeSet<String> = errors.iter().map(|error| error.instance_path.to_string()).collect();
    let below =
        |path: &str| wrong.iter().any(|other| path.len() > other.len() && path.starts_with(other) && path[other.len()..].starts_with('/'));
    let mut reports: Vec<(String, String, Value)> = Vec::new();
    for error in &errors {
        let instance = error.instance_path.to_string();
        if below(&instance) {
            continue;
        }
        let report = report(schema, options, error);
        let keyword = report["keyword"].as_str().unwrap_or_default().to_owned();
        // One report names all missing properties.
        if !reports.iter().any(|known| known.2 == report) {
            reports.push((instance, keyword, report));
        }
    }
    reports.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    reports.into_iter().map(|(_, _, report)| report).collect()
}

fn report(schema: &Value, options: &Value, error: &ValidationError<'_>) -> Value {
    let path = error.schema_path.to_string();
    let (owner, keyword) = path.rsplit_once('/').unwrap_or(("", &path));
    let pointer = resolve_pointer(schema, owner);
    let instance = error.instance_path.to_string();
    let value = options.pointer(&instance).unwrap_or(&Value::Null);
    let due = schema.pointer(&format!("{pointer}/{keyword}")).cloned().unwrap_or(Value::Null);
    let length = value.as_str().map(|text| text.chars().count()).or_else(|| value.as_array().map(Vec::len));
    let found = length.unwrap_or_default();
    let (message, extra) = match &error.kind {
        ValidationErrorKind::Type { kind } => {
            let expected: Vec<String> = match kind {
                TypeKind::Single(one) => vec![one.to_string()],
                TypeKind::Multiple(many) => many.iter().map(|one| one.to_string()).collect(),
            };
            // `number` takes whole numbers as well, and the validator says so.
            let number = expected.iter().any(|one| one == "number");
            let integer = number.then(|| "integer".to_owned()).filter(|integer| !expected.contains(integer));
            let mut expected: Vec<String> = integer.into_iter().chain(expected).collect();
            expected.sort();
            let found = type_name(value);
            let allowed = json!(expected);
            (
                format!("instance type ({found}) does not match any allowed primitive type (allowed: {allowed})"),
                json!({ "found": found, "expected": expected }),
            )
        }
        ValidationErrorKind::Enum { options } => {
            (format!("instance value ({value}) not found in enum (possible values: {options})"), json!({ "value": value, "enum": options }))
        }
        ValidationErrorKind::Pattern { pattern } => {
            (format!("ECMA 262 regex \"{pattern}\" does not match input string {value}"), json!({ "regex": pattern, "string": value }))
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let unwanted: BTreeSet<&String> = unexpected.iter().collect();
            (
                format!("object instance has properties which are not allowed by the schema: {}", json!(unwanted)),
                json!({ "unwanted": unwanted }),
            )
        }
        ValidationErrorKind::Required { .. } => {
            let required: BTreeSet<&str> = due.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let missing: Vec<&&str> = required.iter().filter(|name| value.get(**name).is_none()).collect();
            (format!("object has missing required properties ({})", json!(missing)), json!({ "required": required, "missing": missing }))
        }
        ValidationErrorKind::Minimum { limit } => (
            format!("numeric instance is lower than the required minimum (minimum: {limit}, found: {value})"),
            json!({ "minimum": limit, "found": value }),
        ),
        ValidationErrorKind::Maximum { limit } => (
            format!("numeric instance is greater than the required maximum (maximum: {limit}, found: {value})"),
            json!({ "maximum": limit, "found": value }),
        ),
        ValidationErrorKind::MinLength { limit } => (
            format!("string {value} is too short (length: {found}, required minimum: {limit})"),
            json!({ "value": value, "found": found, "minLength": limit }),
        ),
        ValidationErrorKind::MaxLength { limit } => (
            format!("string {value} is too long (length: {found}, maximum allowed: {limit})"),
            json!({ "value": value, "found": found, "maxLength": limit }),
        ),
        ValidationErrorKind::Format { format } => {
            let name = match format.as_str() {
                "hostname" => "hostname",
                "ipv4" => "IPv4 address",
                "email" => "email address",
                "uri" => "URI",
                other => other,
            };
            (format!("string {value} is not a valid {name}"), json!({ "attribute": format, "value": value }))
        }
        ValidationErrorKind::OneOfNotValid { context } => {
            let count = context.len();
            let reports = branches(schema, options, &pointer, keyword, context);
            (
                format!("instance failed to match exactly one schema (matched 0 out of {count})"),
                json!({ "matched": 0, "nrSchemas": count, "reports": reports }),
            )
        }
        ValidationErrorKind::AnyOf { context } => {
            let count = context.len();
            let reports = branches(schema, options, &pointer, keyword, context);
            (
                format!("instance failed to match at least one required schema among {count}"),
                json!({ "nrSchemas": count, "reports": reports }),
            )
        }
        _ => (error.to_string(), json!({})),
    };
    let head = json!({
        "level": "error",
        "schema": { "loadingURI": "#", "pointer": pointer },
        "instance": { "pointer": instance },
        "domain": "validation",
        "keyword": keyword,
        "message": message,
    });
    merge(head, &extra)
}

fn branches(schema: &Value, options: &Value, pointer: &str, keyword: &str, context: &[Vec<ValidationError<'static>>]) -> Value {
    let branches = context.iter().enumerate().map(|(index, errors)| {
        let errors: Vec<ValidationError<'_>> = errors.iter().map(copy).collect();
        (format!("{pointer}/{keyword}/{index}"), Value::Array(reports(schema, options, errors)))
    });
    Value::Object(branches.collect())
}

/// The crate's errors cannot be cloned; of those within a branch only the place and simple kinds are needed.
fn copy<'a>(error: &'a ValidationError<'static>) -> ValidationError<'a> {
    let kind = match &error.kind {
        ValidationErrorKind::Enum { options } => ValidationErrorKind::Enum { options: options.clone() },
        ValidationErrorKind::Required { property } => ValidationErrorKind::Required { property: property.clone() },
        ValidationErrorKind::Pattern { pattern } => ValidationErrorKind::Pattern { pattern: pattern.clone() },
        ValidationErrorKind::Format { format } => ValidationErrorKind::Format { format: format.clone() },
        _ => ValidationErrorKind::Custom { message: error.to_string() },
    };
    ValidationError {
        instance: std::borrow::Cow::Borrowed(error.instance.as_ref()),
        kind,
        instance_path: error.instance_path.clone(),
        schema_path: error.schema_path.clone(),
    }
}

/// Where `$ref`s of a schema path lead: the validator names the place of the definition.
fn resolve_pointer(schema: &Value, path: &str) -> String {
    let mut pointer = String::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        if segment == "$ref" {
            let target = schema.pointer(&pointer).and_then(|owner| owner.get("$ref")).and_then(Value::as_str).unwrap_or_default();
            pointer = target.trim_start_matches('#').to_owned();
        } else {
            pointer.push('/');
            pointer.push_str(segment);
        }
    }
    pointer
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_of_an_object_hides_those_of_its_children() {
        let schema = json!({"properties": {
            "o": {"default": {"a": "A"}, "properties": {"a": {"default": "IGNORED"}, "z": {"default": "Z"}}},
            "n": {"properties": {"x": {"type": "string"}}},
            "s": {"properties": {"p": {"default": 1}}},
        }});
        assert_eq!(defaults(&schema), json!({"o": {"a": "A"}, "s": {"p": 1}}));
    }

    #[test]
    fn merging_replaces_arrays_and_merges_objects() {
        assert_eq!(
            merge(json!({"a": {"b": 1, "c": [1, 2]}}), &json!({"a": {"c": [3]}, "d": null})),
            json!({"a": {"b": 1, "c": [3]}, "d": null})
        );
    }

    #[test]
    fn a_required_option_is_not_missed_while_no_option_is_set() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
        assert!(resolve(Some(&schema), &json!({})).is_ok());
        assert!(resolve(Some(&schema), &json!({"b": 1})).is_err());
    }
}
