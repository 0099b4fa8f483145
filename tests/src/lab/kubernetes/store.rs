//! Nodes as an API server keeps them: every change has a version, and changes are remembered until
//! they are compacted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

/// A change as a watch shows it.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its version.
    pub version: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub kind: &'static str,
    /// The node after it, or the last of it.
    pub node: Arc<Value>,
}

/// Why a request is refused: an HTTP status, its reason in the API's words, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub code: u16,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Refused {
    /// A refusal.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    /// The version asked for is compacted.
    pub fn expired(version: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {version} ({oldest})"))
    }
}

/// The nodes of a cluster.
pub struct Store {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    version: u64,
    /// Changes up to this one are forgotten.
    compacted: u64,
    nodes: BTreeMap<String, Arc<Value>>,
    history: VecDeque<Change>,
}

impl Default for Store {
    fn default() -> Self {
        let state = State { version: 100, compacted: 100, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All nodes in the order of their names, and the version that this is.
    pub fn all(&self) -> (u64, Vec<Arc<Value>>) {
        let state = self.lock();
        (state.version, state.nodes.values().cloned().collect())
    }

    /// The version that everything up to is forgotten.
    pub fn compacted(&self) -> u64 {
        self.lock().compacted
    }

    /// Forgets all changes.
    pub fn compact(&self) {
        let mut state = self.lock();
        // As any other write to the store would.
        state.version += 1;
        state.compacted = state.version;
        state.history.clear();
    }

    /// The node `name`.
    pub fn get(&self, name: &str) -> Result<Arc<Value>, Refused> {
        self.lock().nodes.get(name).cloned().ok_or_else(|| not_found(name))
    }

    /// Adds a node.
    pub fn create(&self, mut node: Value) -> Result<Arc<Value>, Refused> {
        let mut state = self.lock();
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Refused::new(422, "Invalid", "metadata.name: Required value"));
        }
        if state.nodes.contains_key(&name) {
            return Err(Refused::new(409, "AlreadyExists", format!("nodes \"{name}\" already exists")));
        }
        let born = state.version;
        let metadata = &mut node["metadata"];
        metadata["uid"] = json!(format!("00000000-0000-0000-0000-{born:012}"));
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!(time(born));
        }
        Ok(self.put(&mut state, "ADDED", node))
    }

    /// Merges `patch` into a node, into its status only if `status`, into the rest otherwise.
    /// A patch that changes nothing makes no version.
    pub fn patch(&self, name: &str, patch: &Value, status: bool) -> Result<Arc<Value>, Refused> {
        let mut state = self.lock();
        let before = state.nodes.get(name).cloned().ok_or_else(|| not_found(name))?;
        let wanted = &patch["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != before["metadata"]["resourceVersion"] {
            let message =
                format!("Operation cannot be fulfilled on nodes \"{name}\": the object has been modified");
            return Err(Refused::new(409, "Conflict", message));
        }
        let mut allowed = patch.clone();
        if let Some(fields) = allowed.as_object_mut() {
            fields.remove(if status { "spec" } else { "status" });
        }
        let mut after = Value::clone(&before);
        merge(&mut after, &allowed);
        after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if after == *before {
            return Ok(before);
        }
        Ok(self.put(&mut state, "MODIFIED", after))
    }

    /// Deletes a node.
    pub fn delete(&self, name: &str) -> Result<Arc<Value>, Refused> {
        let mut state = self.lock();
        let node = state.nodes.remove(name).ok_or_else(|| not_found(name))?;
        Ok(self.record(&mut state, "DELETED", Value::clone(&node)))
    }

    fn put(&self, state: &mut State, kind: &'static str, node: Value) -> Arc<Value> {
        let node = self.record(state, kind, node);
        let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        state.nodes.insert(name, node.clone());
        node
    }

    fn record(&self, state: &mut State, kind: &'static str, mut node: Value) -> Arc<Value> {
        state.version += 1;
        node["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let node = Arc::new(node);
        state.history.push_back(Change { version: state.version, kind, node: Arc::clone(&node) });
        self.changed.notify_all();
        node
    }

    /// Changes after `version`, and the version that they lead to; waits up to `patience` for one.
    pub fn after(&self, version: u64, patience: Duration) -> Result<(u64, Vec<Change>), Refused> {
        let none = |state: &mut State| state.version <= version && state.compacted <= version;
        let guard = self.changed.wait_timeout_while(self.lock(), patience, none);
        let (state, _) = guard.unwrap_or_else(std::sync::PoisonError::into_inner);
        if version < state.compacted {
            return Err(Refused::expired(version, state.compacted));
        }
        let later = state.history.iter().rev().take_while(|change| change.version > version);
        let mut changes: Vec<Change> = later.cloned().collect();
        changes.reverse();
        Ok((state.version, changes))
    }
}

fn not_found(name: &str) -> Refused {
    Refused::new(404, "NotFound", format!("nodes \"{name}\" not found"))
}

/// A time for every version, in order.
fn time(version: u64) -> String {
    format!("2026-01-01T{:02}:{:02}:{:02}Z", version / 3600 % 24, version / 60 % 60, version % 60)
}

/// Strategic merge as the API does it for a node: maps are merged and `null` removes a key;
/// conditions and addresses are merged by their type, other lists are replaced.
fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in fields {
        match value {
            Value::Null => drop(into.as_object_mut().and_then(|object| object.remove(key))),
            Value::Array(items) if matches!(key.as_str(), "conditions" | "addresses") => {
                merge_by_type(&mut into[key], items);
            }
            Value::Object(_) => merge(&mut into[key], value),
            _ => into[key] = value.clone(),
        }
    }
}

fn merge_by_type(into: &mut Value, items: &[Value]) {
    if !into.is_array() {
        *into = json!([]);
    }
    let Some(list) = into.as_array_mut() else { return };
    for item in items {
        match list.iter_mut().find(|have| have["type"] == item["type"]) {
            Some(have) => merge(have, item),
            None => list.push(item.clone()),
        }
    }
}
