//! The mustache dialect of Cosmos 0.6.3 (mustache.java 0.9.6 with raw encoding), as far as packages use it.
//!
//! It differs from handlebars in what matters here: what counts as true, how arrays and numbers print, delimiters that change.

use serde_json::{Number, Value};

/// Why a template does not parse; the text is that of the real compiler where it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TemplateError(String);

/// Renders `template` over an object of options.
///
/// # Errors
/// The template does not parse or uses partials.
pub(crate) fn render(template: &str, options: &Value) -> Result<String, TemplateError> {
    let nodes = parse(template)?;
    let mut out = String::new();
    write(&nodes, &mut vec![Scope { value: options, in_array: false }], &mut out);
    Ok(out)
}

#[derive(Debug)]
enum Node {
    Text(String),
    Variable(String),
    Section { name: String, inverted: bool, inner: Vec<Node>, raw: String },
}

/// A value and whether it is an array's element: Cosmos quotes strings in arrays, and only escapes those in objects.
#[derive(Clone, Copy)]
struct Scope<'a> {
    value: &'a Value,
    in_array: bool,
}

fn write<'a>(nodes: &[Node], scopes: &mut Vec<Scope<'a>>, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Variable(name) => {
                if let Some(scope) = find(name, scopes) {
                    print(scope, out);
                }
            }
            Node::Section { name, inverted: false, raw, .. } if name == "asJson" => as_json(raw, scopes[0].value, out),
            Node::Section { name, inverted, inner, .. } => {
                let found = find(name, scopes).filter(|scope| is_true(scope.value));
                match (found, inverted) {
                    (None, true) => write(inner, scopes, out),
                    (Some(scope), false) => section(inner, scope, scopes, out),
                    _ => {}
                }
            }
        }
    }
}

fn section<'a>(inner: &[Node], scope: Scope<'a>, scopes: &mut Vec<Scope<'a>>, out: &mut String) {
    let (items, in_array): (&[Value], bool) = match scope.value {
        Value::Array(items) => (items, true),
        other => (std::slice::from_ref(other), scope.in_array),
    };
    for value in items {
        scopes.push(Scope { value, in_array });
        write(inner, scopes, out);
        scopes.pop();
    }
}

/// `{{#asJson}}name{{/asJson}}`: the text of a top-level string option, as it is.
fn as_json(name: &str, options: &Value, out: &mut String) {
    out.push_str(options.get(name).and_then(Value::as_str).unwrap_or("null"));
}

/// The innermost scope that has the whole dotted path.
fn find<'a>(name: &str, scopes: &[Scope<'a>]) -> Option<Scope<'a>> {
    if name == "." {
        return scopes.last().copied();
    }
    scopes.iter().rev().find_map(|scope| {
        let value = name.split('.').try_fold(scope.value, |value, key| value.as_object()?.get(key))?;
        Some(Scope { value, in_array: false })
    })
}

/// Numbers are true, 0 too; so is every string but the empty one.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn print(scope: Scope<'_>, out: &mut String) {
    match scope.value {
        Value::Null => {}
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&java_number(number)),
        Value::String(text) => {
            let quoted = Value::from(text.as_str()).to_string();
            out.push_str(if scope.in_array { &quoted } else { &quoted[1..quoted.len() - 1] });
        }
        Value::Array(items) => {
            out.push('[');
            for (index, value) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                print(Scope { value, in_array: true }, out);
            }
            out.push(']');
        }
        // How Java prints a map: not JSON, which is why a template cannot embed an object.
        Value::Object(fields) => {
            out.push('{');
            for (index, (key, value)) in fields.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                out.push_str(key);
                out.push('=');
                print(Scope { value, in_array: false }, out);
            }
            out.push('}');
        }
    }
}

/// Whole numbers in full, any other as Java's `Double.toString`.
fn java_number(number: &Number) -> String {
    let Some(double) = number.as_f64().filter(|_| number.is_f64()) else { return number.to_string() };
    if double.fract() == 0.0 {
        return format!("{double:.0}");
    }
    if (1e-3..1e7).contains(&double.abs()) {
        return double.to_string();
    }
    let scientific = format!("{double:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let point = if digits.contains('.') { "" } else { ".0" };
    format!("{digits}{point}E{exponent}")
}

struct Open {
    name: String,
    inverted: bool,
    outer: Vec<Node>,
    start: usize,
}

fn parse(template: &str) -> Result<Vec<Node>, TemplateError> {
    let (mut open_mark, mut close_mark) = ("{{".to_owned(), "}}".to_owned());
    let mut open: Vec<Open> = Vec::new();
    let mut nodes = Vec::new();
    let mut at = 0;
    while let Some(found) = template[at..].find(&open_mark) {
        let tag_start = at + found;
        let inside = tag_start + open_mark.len();
        let rest = &template[inside..];
        let triple = rest.starts_with('{') && open_mark == "{{";
        let mark = if triple { "}}}".to_owned() } else { close_mark.clone() };
        let length =
            rest.find(&mark).ok_or_else(|| TemplateError("Improperly closed variable @[.marathon.v2AppMustacheTemplate:1]".into()))?;
        let tag = &rest[..length];
        let tag_end = inside + length + mark.len();
        let kind = if triple { '{' } else { tag.trim_start().chars().next().unwrap_or(' ') };
        let name = tag.trim_matches(|c: char| c.is_whitespace() || "{#/^&".contains(c)).to_owned();

        let (text_end, next) = match kind {
            '#' | '^' | '/' | '!' | '=' => standalone(template, at, tag_start, tag_end),
            _ => (tag_start, tag_end),
        };
        if text_end > at {
            nodes.push(Node::Text(template[at..text_end].to_owned()));
        }
        match kind {
            '!' => {}
            '=' => {
                let marks = tag.trim().trim_matches('=').trim();
                let (first, second) =
                    marks.split_once(char::is_whitespace).ok_or_else(|| TemplateError(format!("Invalid delimiter: {tag}")))?;
                (open_mark, close_mark) = (first.to_owned(), second.trim().to_owned());
            }
            '>' => return Err(TemplateError(format!("Template {}.v2AppMustacheTemplate not found", tag.trim()[1..].trim()))),
            '#' | '^' => open.push(Open { name, inverted: kind == '^', outer: std::mem::take(&mut nodes), start: next }),
            '/' => {
                let section = open.pop().filter(|section| section.name == name).ok_or_else(|| mismatch(&name))?;
                let raw = template[section.start..text_end].to_owned();
                let inner = std::mem::replace(&mut nodes, section.outer);
                nodes.push(Node::Section { name, inverted: section.inverted, inner, raw });
            }
            _ => nodes.push(Node::Variable(name)),
        }
        at = next;
    }
    if let Some(section) = open.pop() {
        return Err(TemplateError(format!("Failed to close '{}' tag @[.marathon.v2AppMustacheTemplate:1]", section.name)));
    }
    nodes.push(Node::Text(template[at..].to_owned()));
    Ok(nodes)
}

fn mismatch(name: &str) -> TemplateError {
    TemplateError(format!("Mismatched start/end tags: null != {name} in .marathon.v2AppMustacheTemplate:1"))
}

/// A section, comment or delimiter tag that is alone on its line takes the whole line with it.
fn standalone(template: &str, at: usize, start: usize, end: usize) -> (usize, usize) {
    let line_start = template[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = template[end..].find('\n').map_or(template.len(), |newline| end + newline + 1);
    // Text before `at` was consumed by another tag: the line then begins with a tag, unless that one took its line too.
    let alone = line_start >= at && template[line_start..start].trim().is_empty() && template[end..line_end].trim().is_empty();
    if alone { (line_start, line_end) } else { (start, end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rendered(template: &str, options: &Value) -> String {
        render(template, options).unwrap()
    }

    #[test]
    fn strings_are_escaped_for_json_however_they_are_written() {
        let options = json!({"a": {"b": "x\"\n"}});
        assert_eq!(rendered("{{a.b}}|{{{a.b}}}|{{&a.b}}", &options), r#"x\"\n|x\"\n|x\"\n"#);
    }

    #[test]
    fn an_array_of_strings_renders_as_json() {
        let options = json!({"l": ["one", "t\"wo"]});
        assert_eq!(rendered("{{l}} {{#l}}{{.}},{{/l}}", &options), r#"["one", "t\"wo"] "one","t\"wo","#);
    }

    #[test]
    fn only_false_null_missing_and_empty_are_false() {
        let template = "{{#x}}yes{{/x}}{{^x}}no{{/x}}";
        for value in [json!(false), json!(null), json!(""), json!([])] {
            assert_eq!(rendered(template, &json!({"x": value})), "no");
        }
        for value in [json!(0), json!("false"), json!(" "), json!({}), json!(true)] {
            assert_eq!(rendered(template, &json!({"x": value})), "yes");
        }
        assert_eq!(rendered(template, &json!({})), "no");
    }

    #[test]
    fn numbers_print_as_java_prints_them() {
        let options = json!({"a": 1.0, "b": 1e21, "c": -1.5e-7, "d": 12345678.5, "e": 0.5, "f": 123456789012345u64});
        assert_eq!(
            rendered("{{a}} {{b}} {{c}} {{d}} {{e}} {{f}}", &options),
            "1 1000000000000000000000 -1.5E-7 1.23456785E7 0.5 123456789012345"
        );
    }

    #[test]
    fn a_tag_alone_on_its_line_leaves_no_line() {
        let template = "{\n  {{#f}}\n  \"a\": 1,\n  {{/f}}\n  {{^f}}\n  \"b\": 1,\n  {{/f}}\n}";
        assert_eq!(rendered(template, &json!({"f": true})), "{\n  \"a\": 1,\n}");
        assert_eq!(rendered(template, &json!({"f": false})), "{\n  \"b\": 1,\n}");
    }

    #[test]
    fn an_unclosed_section_and_a_partial_are_errors() {
        assert_eq!(render("{{#a}}", &json!({})).unwrap_err().to_string(), "Failed to close 'a' tag @[.marathon.v2AppMustacheTemplate:1]");
        assert_eq!(render("{{> other}}", &json!({})).unwrap_err().to_string(), "Template other.v2AppMustacheTemplate not found");
    }
}
