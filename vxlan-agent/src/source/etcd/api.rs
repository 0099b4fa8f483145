//! etcd: how to reach it, and the requests that are made of it.
//!
//! The transport is tonic's; the messages are written down in [`wire`] because the crates that have
//! all of them need a compiler for protocol buffers on every machine that builds the agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{self, StreamExt as _};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::layout::{Attributes, Entries, Entry};
use super::wire::{self, path};
use crate::text::Text;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long one answer that is not a watch may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How often a silent connection is tried, and how long it has to answer: one from an address that
/// the machine has lost is found out by that. Servers allow no more often than every 5 seconds.
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_WITHIN: Duration = Duration::from_secs(10);
/// The largest message that is read: a list of some hundred thousand nodes.
const LARGEST: usize = 64 << 20;

/// How to reach etcd, and where in it the network is.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// URLs of its members, `http://` or `https://`: one that answers will do.
    pub endpoints: Vec<String>,
    /// What all keys begin with, without a slash at the end.
    pub prefix: String,
    /// Certificates that the members' may be signed with; `None`: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

impl std::fmt::Debug for Access {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        let Self { endpoints, prefix, ca_file, identity, .. } = self;
        write!(f, "Access({endpoints:?}, {prefix:?}, {ca_file:?}, {identity:?}, {user:?})")
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// What was asked for is too old: list anew.
    #[error("the revision to go on from is gone")]
    Compacted,
    /// The server has forgotten who we are: connect anew.
    #[error("etcd does not know this user's token any more")]
    Forgotten,
    /// The server said no, or there was no answer.
    #[error("{0}")]
    Broken(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if status.code() == Code::Unauthenticated {
            return Self::Forgotten;
        }
        let said = format!("{}: {}", status.code().description(), status.message());
        let why = std::error::Error::source(&status).map(|e| format!(": {}", chain(e)));
        Self::Broken(one_line(&format!("{said}{}", why.unwrap_or_default())))
    }
}

/// An error and what it comes from: that of the transport says only that there is one.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        said = format!("{said}: {error}");
        next = error.source();
    }
    said
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// All that is in etcd at one revision.
#[derive(Debug)]
pub(super) struct Listed {
    /// All keys of nodes.
    pub entries: Entries,
    /// The revision.
    pub revision: i64,
}

/// One thing that a watch says.
#[derive(Debug)]
pub(super) struct Change {
    /// Last part of the key.
    pub name: String,
    /// What it is now; `None` if it is gone or means nothing.
    pub entry: Option<Entry>,
}

/// Changes, from a watch.
pub(super) struct Changes {
    messages: Streaming<wire::WatchResponse>,
    since: i64,
    prefix: String,
}

/// The members of etcd.
pub(super) struct Members {
    access: Access,
    tls: Option<ClientTlsConfig>,
    /// The next one to try.
    next: usize,
}

impl Members {
    /// Reads the files that `access` names; nothing is sent yet.
    ///
    /// # Errors
    /// A file cannot be read, or an endpoint is no URL.
    pub(super) fn new(access: Access) -> anyhow::Result<Self> {
        for endpoint in &access.endpoints {
            Endpoint::from_shared(endpoint.clone()).with_context(|| format!("'{endpoint}' is no URL"))?;
        }
        if access.endpoints.is_empty() {
            bail!("there is no etcd endpoint");
        }
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut tls = ClientTlsConfig::new();
        tls = match &access.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &access.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        let secure = access.endpoints.iter().any(|endpoint| endpoint.starts_with("https:"));
        Ok(Self { tls: secure.then_some(tls), access, next: 0 })
    }

    /// Connects to the next member that answers.
    pub(super) async fn connect(&mut self) -> Result<Connection, Failure> {
        let mut failures = vec![];
        for _ in 0..self.access.endpoints.len() {
            let url = &self.access.endpoints[self.next % self.access.endpoints.len()];
            self.next = self.next.wrapping_add(1);
            match self.connect_to(url).await {
                Ok(connection) => return Ok(connection),
                Err(failure) => failures.push(format!("{url}: {failure}")),
            }
        }
        Err(Failure::Broken(failures.join("; ")))
    }

    async fn connect_to(&self, url: &str) -> Result<Connection, Failure> {
        let broken = |error: &dyn std::error::Error| Failure::Broken(one_line(&chain(error)));
        let mut endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| broken(&error))?
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WITHIN)
            .keep_alive_while_idle(true);
        if let Some(tls) = self.tls.as_ref().filter(|_| url.starts_with("https:")) {
            endpoint = endpoint.tls_config(tls.clone()).map_err(|error| broken(&error))?;
        }
        let channel = endpoint.connect().await.map_err(|error| broken(&error))?;
        let mut connection = Connection { channel, token: None, prefix: self.access.prefix.clone() };
        if let Some((name, password)) = &self.access.user {
            connection.authenticate(name, password).await?;
        }
        Ok(connection)
    }
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Connection {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    prefix: String,
}

impl Connection {
    async fn authenticate(&mut self, name: &str, password: &str) -> Result<(), Failure> {
        let request = wire::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let answer: wire::AuthenticateResponse = self.ask(path::AUTHENTICATE, request).await?;
        let token = answer.token.parse().map_err(|_| Failure::Broken("etcd's token is no text".into()))?;
        self.token = Some(token);
        Ok(())
    }

    /// The value of `config`.
    pub(super) async fn config(&self) -> Result<Option<Text>, Failure> {
        let key = format!("{}/config", self.prefix);
        let request = wire::RangeRequest { key: key.clone().into_bytes(), range_end: vec![] };
        let answer: wire::RangeResponse = self.ask(path::RANGE, request).await?;
        let value = answer.kvs.into_iter().next().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        Ok(value.map(|value| Text::new(format!("etcd {key}"), value)))
    }

    /// All keys of nodes.
    pub(super) async fn list(&self) -> Result<Listed, Failure> {
        let (first, end) = self.nodes();
        let request = wire::RangeRequest { key: first.into_bytes(), range_end: end.into_bytes() };
        let answer: wire::RangeResponse = self.ask(path::RANGE, request).await?;
        let entries = answer.kvs.iter().filter_map(|kv| {
            let name = self.name(&kv.key)?;
            Some((name.clone(), entry(&name, kv)?))
        });
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok(Listed { entries: entries.collect(), revision })
    }

    /// Changes after `revision`.
    pub(super) async fn watch(&self, revision: i64) -> Result<Changes, Failure> {
        let (first, end) = self.nodes();
        let create = wire::WatchCreateRequest {
            key: first.into_bytes(),
            range_end: end.into_bytes(),
            start_revision: revision + 1,
            progress_notify: true,
        };
        // The server ends a watch whose requests have come to an end.
        let requests = stream::iter([wire::WatchRequest { create: Some(create) }]).chain(stream::pending());
        let mut request = self.request(requests);
        // A member that has lost the others says so instead of being silent.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut client = self.client().await?;
        let opened = client.streaming(request, PathAndQuery::from_static(path::WATCH), ProstCodec::default());
        let messages = within(opened).await?.into_inner();
        Ok(Changes { messages, since: revision, prefix: self.nodes().0 })
    }

    /// A new lease: its number and how long it lives.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), Failure> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let request = wire::LeaseGrantRequest { ttl };
        let answer: wire::LeaseGrantResponse = self.ask(path::LEASE_GRANT, request).await?;
        Ok((answer.id, seconds(answer.ttl)))
    }

    /// Ends a lease, and all keys that end with it.
    pub(super) async fn revoke(&self, id: i64) -> Result<(), Failure> {
        self.ask::<_, wire::Empty>(path::LEASE_REVOKE, wire::LeaseRequest { id }).await.map(drop)
    }

    /// Lets a lease live for its whole time from now on; how long that is, or nothing if it is over.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<Duration, Failure> {
        let request = self.request(stream::iter([wire::LeaseRequest { id }]));
        let mut client = self.client().await?;
        let path = PathAndQuery::from_static(path::LEASE_KEEP_ALIVE);
        let answer = async {
            let answers = client.streaming(request, path, ProstCodec::default()).await?;
            answers.into_inner().message().await
        };
        let answer: Option<wire::LeaseKeepAliveResponse> = within(answer).await?;
        Ok(answer.map_or(Duration::ZERO, |answer| seconds(answer.ttl)))
    }

    /// Writes the key of a node if its last change was in revision `seen`, 0 if it must not exist;
    /// whether it was so.
    pub(super) async fn put(
        &self,
        name: &str,
        attributes: &Attributes,
        lease: i64,
        seen: i64,
    ) -> Result<bool, Failure> {
        let (key, value) = (self.key(name), attributes.to_string().into_bytes());
        let put = Some(wire::PutRequest { key, value, lease });
        self.change(name, seen, wire::RequestOp { put, delete_range: None }).await
    }

    /// Deletes the key of a node if its last change was in revision `seen`; whether it was so.
    pub(super) async fn delete(&self, name: &str, seen: i64) -> Result<bool, Failure> {
        let delete_range = Some(wire::DeleteRangeRequest { key: self.key(name) });
        self.change(name, seen, wire::RequestOp { put: None, delete_range }).await
    }

    async fn change(&self, name: &str, seen: i64, then: wire::RequestOp) -> Result<bool, Failure> {
        let (key, target) = (self.key(name), wire::Compare::MOD);
        let compare = wire::Compare { result: 0, target, key, mod_revision: Some(seen) };
        let request = wire::TxnRequest { compare: vec![compare], success: vec![then] };
        let answer: wire::TxnResponse = self.ask(path::TXN, request).await?;
        Ok(answer.succeeded)
    }

    fn key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.nodes().0).into_bytes()
    }

    /// What keys of nodes begin with, and the first that is behind them.
    fn nodes(&self) -> (String, String) {
        (format!("{}/subnets/", self.prefix), format!("{}/subnets0", self.prefix))
    }

    fn name(&self, key: &[u8]) -> Option<String> {
        name(key, &self.nodes().0)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    async fn client(&self) -> Result<Grpc<Channel>, Failure> {
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        client.ready().await.map_err(|error| Failure::Broken(one_line(&chain(&error))))?;
        Ok(client)
    }

    async fn ask<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client().await?;
        let path = PathAndQuery::from_static(path);
        let answer = within(client.unary(self.request(message), path, ProstCodec::default())).await?;
        Ok(answer.into_inner())
    }
}

impl Changes {
    /// The next changes, perhaps none.
    pub(super) async fn next(&mut self) -> Result<Vec<Change>, Failure> {
        let message = self.messages.message().await?;
        let message = message.ok_or_else(|| Failure::Broken("etcd has ended the watch".into()))?;
        if message.compact_revision > 0 {
            return Err(Failure::Compacted);
        }
        if message.canceled {
            return Err(Failure::Broken(one_line(&format!(
                "etcd ends the watch: {}",
                message.cancel_reason
            ))));
        }
        // A store that has been put back to an earlier state would say nothing for a long time.
        let reached = message.header.map_or(0, |header| header.revision);
        if message.created && reached < self.since {
            return Err(Failure::Compacted);
        }
        if let Some(last) = message.events.iter().filter_map(|event| event.kv.as_ref()).next_back() {
            self.since = last.mod_revision;
        } else if !message.created {
            self.since = reached;
        }
        let changes = message.events.into_iter().filter_map(|event| {
            let kv = event.kv?;
            let name = name(&kv.key, &self.prefix)?;
            let entry = if event.kind == wire::Event::DELETE { None } else { entry(&name, &kv) };
            Some(Change { name, entry })
        });
        Ok(changes.collect())
    }

    /// The revision up to which everything has been said.
    pub(super) const fn since(&self) -> i64 {
        self.since
    }
}

fn name(key: &[u8], prefix: &str) -> Option<String> {
    Some(std::str::from_utf8(key).ok()?.strip_prefix(prefix)?.to_owned())
}

/// A key that names no subnets is none of flannel's.
fn entry(name: &str, kv: &wire::KeyValue) -> Option<Entry> {
    let value = std::str::from_utf8(&kv.value).map_err(|_| "its value is no text".to_owned());
    Some(Entry {
        subnets: name.parse().ok()?,
        attributes: value.and_then(Attributes::parse),
        lease: kv.lease,
        created: kv.create_revision,
        changed: kv.mod_revision,
    })
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or_default())
}

async fn within<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Broken(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}
