//! `GET /$discovery/rest?version=v1`: the description of the API that Google's clients build themselves from.

/// Stands for the emulator's own address in the file.
const ROOT: &str = "{{root}}";

/// The document, with all addresses pointing to `url`.
pub(crate) fn document(url: &str) -> String {
    include_str!("discovery.json").replace(ROOT, url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_json_and_points_here() {
        let document: serde_json::Value =
            serde_json::from_str(&document("http://127.0.0.1:1")).unwrap();
        assert_eq!(document["rootUrl"], "http://127.0.0.1:1/");
        assert_eq!(document["batchPath"], "batch");
    }
}
