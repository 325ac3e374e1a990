//! The page for people at `/`.

use handlebars::Handlebars;
use serde_json::json;

use super::report::Report;
use crate::operator::snippets::{self, Snippet};

/// Renders the page. Every value is escaped by the template engine.
pub(super) fn render(report: &Report, actions: &[String]) -> String {
    let values = json!({
        "report": report,
        "actions": actions,
        "registry": snippets::prefix(report),
        "app": snippets::snippet(Snippet::MarathonApp, report),
        "mount": snippets::mount(),
    });
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
        assert!(!page.contains("Use it"), "there is no name to use yet: {page}");
    }

    #[test]
    fn the_page_says_how_the_registry_is_used_by_its_own_name() {
        let report = Report { names: vec!["images.example.com:5000".into()], ..Report::default() };
        let page = render(&report, &[]);
        assert!(page.contains("docker push images.example.com:5000/team/app:1"), "{page}");
        assert!(page.contains("&quot;image&quot;: &quot;images.example.com:5000/team/app:1&quot;"), "{page}");
        assert!(page.contains("--volume /etc/docker/certs.d:/etc/docker/certs.d:ro"), "{page}");
    }
}
