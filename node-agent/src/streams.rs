//! Streams of events over the agent's socket, to people who look.

use std::io;
use std::time::Duration;

use moat_cni::protocol::{self, Outcome, Response};
use moat_cni::stream::Event;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time;
use tokio_util::sync::CancellationToken;

/// How long who looks may take to read what he was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much is sent at once, about.
const CHUNK: usize = 32 << 10;

/// A stream that has begun.
pub(crate) struct Stream {
    to: UnixStream,
    unsent: Vec<u8>,
}

impl Stream {
    /// Says that events follow.
    pub(crate) fn begin(to: UnixStream, version: u32) -> Self {
        Self { to, unsent: protocol::encode(&Response { version, outcome: Outcome::Stream }) }
    }

    /// Sends these up to their end. Who does not come to an end has failed: then the stream breaks off.
    pub(crate) async fn all(mut self, mut events: mpsc::Receiver<Event>) -> io::Result<()> {
        while let Some(event) = events.recv().await {
            if event == Event::End {
                return self.end().await;
            }
            self.push(&event).await?;
        }
        self.flush().await?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Sends these and then, if they are followed, what comes, until who looks goes away or `stop`.
    pub(crate) async fn follow(
        mut self,
        there: Vec<Event>,
        follow: Option<broadcast::Receiver<Event>>,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        for event in there {
            self.push(&event).await?;
        }
        let Some(mut events) = follow else { return self.end().await };
        loop {
            self.flush().await?;
            let mut ignored = [0; 64];
            let event = tokio::select! {
                () = stop.cancelled() => return self.end().await,
                read = self.to.read(&mut ignored) => match read? {
                    0 => return Ok(()),
                    _ => continue,
                },
                event = events.recv() => event,
            };
            match event {
                Ok(event) => self.push(&event).await?,
                Err(RecvError::Lagged(missed)) => self.push(&Event::Missed(missed)).await?,
                Err(RecvError::Closed) => return self.end().await,
            }
        }
    }

    async fn push(&mut self, event: &Event) -> io::Result<()> {
        self.unsent.extend(protocol::encode(event));
        if self.unsent.len() >= CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        time::timeout(PATIENCE, self.to.write_all(&self.unsent)).await.map_err(io::Error::from)??;
        self.unsent.clear();
        Ok(())
    }

    async fn end(mut self) -> io::Result<()> {
        self.push(&Event::End).await?;
        self.flush().await
    }
}
