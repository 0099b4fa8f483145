//! Answers over HTTP, on a thread of their own: nothing that the agent's loop does keeps them waiting, and they do not
//! keep the loop.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

/// What a whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// What is said of plain text.
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

/// What is sent back.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The text's `Content-Type`.
    pub(crate) kind: &'static str,
    pub(crate) text: String,
}

impl Answer {
    /// Plain text.
    pub(crate) const fn plain(status: StatusCode, text: String) -> Self {
        Self { status, kind: PLAIN, text }
    }
}

/// Listens at `address`.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers whoever connects to what `open` returns, with what `answer` says to a method and a path, for as long as the
/// process lives. Both run on the new thread, which is called `name`.
pub(crate) fn serve(
    name: &'static str,
    open: impl FnOnce() -> TcpListener + Send + 'static,
    answer: impl Fn(&Method, &str) -> Answer + Send + 'static,
) -> anyhow::Result<()> {
    let context = || format!("cannot answer requests for {name}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().with_context(context)?;
    let work = move || {
        let listener = open();
        let Err(error) = runtime.block_on(answer_all(name, listener, &answer));
        tracing::error!("requests for {name} are not answered any more: {error}");
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).with_context(context)?;
    Ok(())
}

async fn answer_all<A: Fn(&Method, &str) -> Answer>(
    name: &str,
    listener: TcpListener,
    answer: &A,
) -> io::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            // One after the other: nobody can make the agent busy with this.
            Ok((stream, _)) => drop(tokio::time::timeout(PATIENCE, exchange(stream, answer)).await),
            Err(error) => {
                tracing::warn!("cannot accept a request for {name}: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn exchange<A: Fn(&Method, &str) -> Answer>(stream: TcpStream, answer: &A) {
    let respond = |request: Request<Incoming>| {
        let Answer { status, kind, text } = answer(request.method(), request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        std::future::ready(Ok::<_, Infallible>(response))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(respond));
    if let Err(error) = connection.await {
        tracing::debug!("a request was broken off: {error}");
    }
}
