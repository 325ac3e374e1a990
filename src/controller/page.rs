//! The page for people at `/`.

use handlebars::Handlebars;
use serde_json::json;

use super::report::Report;

/// Renders the page. Every value is escaped by the template engine.
pub(super) fn render(report: &Report, actions: &[String]) -> String {
    let values = json!({ "report": report, "actions": actions });
    Handlebars::new()
        .render_template(include_str!("../templates/page.html.hbs"), &values)
        .unwrap_or_else(|error| format!("the page's template is broken: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped_and_links_are_relative() {
        let report = Report { problems: vec!["<script>alert(1)</script>".into()], ..Report::default() };
        let page = render(&report, &[]);
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        assert!(!page.contains("href=\"/"), "a link is not relative: {page}");
    }
}
