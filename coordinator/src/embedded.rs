//! Workers inside this process: the only file that knows the worker library. They are spoken to
//! through the same gRPC session as any other, over a socket pair that nobody else can reach.

use std::io;
use std::process::ExitCode;

use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use widemap_common::time::Timers;
use widemap_worker::{Registry, Worker, WorkerConfig};
pub(crate) use widemap_worker::{Spawner, SpawnerError};

/// Nothing but a worker, with the command line of `widemap-worker`. Must be called before the process has a second
/// thread.
pub(crate) fn alone() -> ExitCode {
    widemap_worker::main(Registry::stock())
}

/// The embedded worker's task, ended by [`Embedded::close`].
pub(crate) struct Embedded {
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Embedded {
    /// Starts a worker of as many slots as `spawner` was started for, and returns the end of the
    /// socket pair to dial it by.
    ///
    /// # Errors
    /// If no socket pair can be made.
    pub(crate) fn start(
        spawner: Spawner,
        slots: u32,
        timers: Timers,
    ) -> io::Result<(Self, UnixStream)> {
        let (near, far) = UnixStream::pair()?;
        let config =
            WorkerConfig { name: "local".to_owned(), slots, timers, ..WorkerConfig::default() };
        let worker = Worker::embedded(config, Registry::stock(), spawner);
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let stop = shutdown.clone();
        tasks.spawn(async move {
            if let Err(error) = worker.serve_stream(far, stop).await {
                tracing::warn!(%error, "the embedded worker's stream ended");
            }
        });
        Ok((Self { tasks, shutdown }, near))
    }

    /// Ends the worker and waits for it; a panic in it comes out here.
    pub(crate) async fn close(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}
