//! Workers that are named one by one: by flags, in the environment, in the configuration file.

use tokio::sync::mpsc;

use super::{Place, Source, Suggestion};

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    /// What a person calls the source.
    pub(crate) name: String,
    /// `HOST:PORT` each.
    pub(crate) addresses: Vec<String>,
}

#[tonic::async_trait]
impl Source for Fixed {
    fn name(&self) -> &str {
        &self.name
    }

    async fn watch(self: Box<Self>, suggestions: mpsc::Sender<Suggestion>) {
        let places = self.addresses.into_iter().map(Place::at).collect();
        let suggestion = Suggestion {
            source: self.name,
            places,
            hints: false,
            unused: Vec::new(),
            trouble: None,
        };
        // If the driver is gone, nobody asks for places any more.
        let _ = suggestions.send(suggestion).await;
    }
}
