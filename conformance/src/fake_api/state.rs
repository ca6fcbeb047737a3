//! The objects, their versions and their history.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tesk_core::time::Timestamp;

/// Bytes of the data of a config map or secret.
const MAX_DATA: usize = 1 << 20;
/// Bytes of an object's annotations.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// A refusal: status code, reason, message.
pub(super) type Refusal = (u16, &'static str, String);

#[derive(Default)]
pub(super) struct State {
    version: u64,
    uids: u64,
    /// By the path of the collection, then by name.
    collections: BTreeMap<String, BTreeMap<String, Arc<Value>>>,
    pub(super) history: Vec<Change>,
    /// Changes up to this version are forgotten.
    pub(super) compacted: u64,
    pub(super) requests: BTreeMap<String, u64>,
}

/// One change of one object.
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) collection: String,
    pub(super) old: Option<Arc<Value>>,
    pub(super) new: Arc<Value>,
    pub(super) deleted: bool,
}

impl State {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    pub(super) fn get(&self, collection: &str, name: &str) -> Option<Arc<Value>> {
        self.collections.get(collection)?.get(name).cloned()
    }

    /// The objects of a collection whose names follow `after`.
    pub(super) fn list(&self, collection: &str, after: &str) -> impl Iterator<Item = &Arc<Value>> {
        self.collections
            .get(collection)
            .into_iter()
            .flat_map(move |all| all.range(after.to_owned()..))
            .filter(move |(name, _)| *name != after)
            .map(|(_, object)| object)
    }

    pub(super) fn objects(&self, plural: &str) -> Vec<Value> {
        let end = format!("/{plural}");
        let all = self
            .collections
            .iter()
            .filter(|(path, _)| path.ends_with(&end));
        all.flat_map(|(_, objects)| objects.values().map(|object| (**object).clone()))
            .collect()
    }

    pub(super) fn edit(
        &mut self,
        plural: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> bool {
        let Some((collection, object)) = self.find(plural, name) else {
            return false;
        };
        let mut new = (*object).clone();
        change(&mut new);
        self.store(&collection, name, new);
        true
    }

    pub(super) fn remove_by_name(&mut self, plural: &str, name: &str) -> bool {
        let Some((collection, _)) = self.find(plural, name) else {
            return false;
        };
        self.remove(&collection, name).is_some()
    }

    fn find(&self, plural: &str, name: &str) -> Option<(String, Arc<Value>)> {
        let end = format!("/{plural}");
        self.collections
            .iter()
            .filter(|(path, _)| path.ends_with(&end))
            .find_map(|(path, objects)| Some((path.clone(), Arc::clone(objects.get(name)?))))
    }

    /// Stores an object under its next version.
    fn store(&mut self, collection: &str, name: &str, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let new = Arc::new(object);
        let all = self.collections.entry(collection.to_owned()).or_default();
        let old = all.insert(name.to_owned(), Arc::clone(&new));
        self.history.push(Change {
            version: self.version,
            collection: collection.to_owned(),
            old,
            new: Arc::clone(&new),
            deleted: false,
        });
        new
    }

    fn remove(&mut self, collection: &str, name: &str) -> Option<Arc<Value>> {
        let old = self.collections.get_mut(collection)?.remove(name)?;
        self.version += 1;
        let mut last = (*old).clone();
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let new = Arc::new(last);
        self.history.push(Change {
            version: self.version,
            collection: collection.to_owned(),
            old: Some(old),
            new: Arc::clone(&new),
            deleted: true,
        });
        Some(new)
    }

    /// Stores a new object, or says what it would be.
    pub(super) fn create(
        &mut self,
        place: &super::answer::Place,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, Refusal> {
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        let metadata = &mut object["metadata"];
        let name = match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
            (Some(name), _) if !name.is_empty() => name.to_owned(),
            (_, Some(prefix)) => format!("{prefix}{:05x}", self.uids),
            _ => {
                return Err(invalid(
                    "metadata.name: Required value: name or generateName is required",
                ));
            }
        };
        let now = Timestamp::now().as_millis() / 1000 * 1000;
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(place.namespace);
        metadata["uid"] = json!(uid);
        metadata["creationTimestamp"] = json!(Timestamp::from_millis(now).to_string());
        validate(&object)?;
        if self.get(&place.collection, &name).is_some() {
            let message = format!("{} \"{name}\" already exists", place.plural);
            return Err((409, "AlreadyExists", message));
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        Ok(self.store(&place.collection, &name, object))
    }

    /// Replaces an object that is there.
    pub(super) fn replace(
        &mut self,
        place: &super::answer::Place,
        name: &str,
        mut object: Value,
        dry_run: bool,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self
            .get(&place.collection, name)
            .ok_or_else(|| place.not_found(name))?;
        for (field, code) in [("resourceVersion", 409), ("uid", 409), ("name", 400)] {
            let wanted = &object["metadata"][field];
            if wanted.is_string() && *wanted != old["metadata"][field] {
                let message = format!(
                    "Operation cannot be fulfilled on {} \"{name}\": the object has been modified \
                     ({field}); please apply your changes to the latest version and try again",
                    place.plural
                );
                return Err((code, "Conflict", message));
            }
        }
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "resourceVersion",
        ] {
            if let Some(value) = old["metadata"].get(field) {
                object["metadata"][field] = value.clone();
            }
        }
        for field in ["apiVersion", "kind"] {
            object[field] = old[field].clone();
        }
        validate(&object)?;
        if old["immutable"] == true {
            let same = ["data", "binaryData", "immutable"]
                .iter()
                .all(|f| old[f] == object[f]);
            if !same {
                return Err(invalid(
                    "data: Forbidden: field is immutable when `immutable` is set",
                ));
            }
        }
        // A write that changes nothing makes no version.
        if dry_run || *old == object {
            return Ok(Arc::new(object));
        }
        let new = self.store(&place.collection, name, object);
        if new["metadata"]["deletionTimestamp"].is_string() && !has_finalizers(&new) {
            return Ok(self.remove(&place.collection, name).unwrap_or(new));
        }
        Ok(new)
    }

    /// Deletes an object, or marks it where a finalizer or a kubelet has to agree.
    pub(super) fn delete(
        &mut self,
        place: &super::answer::Place,
        name: &str,
        options: &Value,
    ) -> Result<Arc<Value>, Refusal> {
        let old = self
            .get(&place.collection, name)
            .ok_or_else(|| place.not_found(name))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if wanted.is_string() && *wanted != old["metadata"][field] {
                let message = format!(
                    "Operation cannot be fulfilled on {} \"{name}\": precondition failed: {field}",
                    place.plural
                );
                return Err((409, "Conflict", message));
            }
        }
        let runs = place.plural == "pods"
            && old["spec"]["nodeName"].is_string()
            && options["gracePeriodSeconds"] != 0;
        if !runs && !has_finalizers(&old) {
            return self
                .remove(&place.collection, name)
                .ok_or_else(|| place.not_found(name));
        }
        if old["metadata"]["deletionTimestamp"].is_string() {
            return Ok(old);
        }
        let mut marked = (*old).clone();
        marked["metadata"]["deletionTimestamp"] = json!(Timestamp::now().to_string());
        marked["metadata"]["deletionGracePeriodSeconds"] =
            json!(options["gracePeriodSeconds"].as_u64().unwrap_or(30));
        Ok(self.store(&place.collection, name, marked))
    }
}

fn has_finalizers(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|all| !all.is_empty())
}

fn invalid(message: impl Into<String>) -> Refusal {
    (422, "Invalid", message.into())
}

fn validate(object: &Value) -> Result<(), Refusal> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inner = |b: u8| plain(b) || b == b'-' || b == b'.';
    if name.len() > 253
        || !name.bytes().all(inner)
        || !name.bytes().next().is_some_and(plain)
        || !name.bytes().last().is_some_and(plain)
    {
        return Err(invalid(format!("metadata.name: Invalid value: \"{name}\"")));
    }
    let texts = |field: &str| {
        let map = object["metadata"][field].as_object();
        map.into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.as_str()))
    };
    for (key, value) in texts("labels") {
        let value = value.ok_or_else(|| invalid("labels hold text"))?;
        let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let ends = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
        if value.len() > 63
            || !value.bytes().all(ok)
            || !ends(value.bytes().next())
            || !ends(value.bytes().last())
        {
            return Err(invalid(format!(
                "metadata.labels: Invalid value: {key}=\"{value}\""
            )));
        }
    }
    let mut size = 0;
    for (key, value) in texts("annotations") {
        size += key.len() + value.ok_or_else(|| invalid("annotations hold text"))?.len();
    }
    if size > MAX_ANNOTATIONS {
        return Err(invalid(format!(
            "metadata.annotations: Too long: may not be more than {MAX_ANNOTATIONS} bytes"
        )));
    }
    let data = |field: &str, encoded: bool| -> usize {
        let values = object[field].as_object().into_iter().flatten();
        values
            .map(|(_, value)| value.as_str().map_or(0, str::len))
            .map(|length| if encoded { length / 4 * 3 } else { length })
            .sum()
    };
    let secret = object["kind"] == "Secret";
    if data("data", secret) + data("binaryData", true) > MAX_DATA {
        return Err(invalid(format!(
            "[]: Too long: must have at most {MAX_DATA} bytes"
        )));
    }
    Ok(())
}
