//! All nodes and drives of a machine by name, and who uses what.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use cardcage_options::{Options, is_identifier};
use serde_json::Value as Json;

use crate::backend::Attachment;
use crate::file::FileDriver;
use crate::node::{BlockDriver, NodeSettings};
use crate::options::{ChildRef, DriveOptions, Interface, NodeKind, NodeOptions};
use crate::raw::RawDriver;
use crate::request::locked;
use crate::stats::Counters;
use crate::{BlockBackend, BlockError, BlockNode, BlockStats, IoEngine, Permissions, ThreadPool};

/// Nodes that may lie above each other. Following them down takes stack.
const MAX_DEPTH: usize = 64;
/// Characters that a node's name may have.
const MAX_NAME: usize = 31;

/// The block nodes and drives of a machine. Clones are the same graph.
#[derive(Clone)]
pub struct BlockGraph {
    shared: Arc<Shared>,
}

/// A drive: a node with an id, for one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its id.
    pub id: String,
    /// Its topmost node.
    pub node_name: String,
    /// The device model that is wanted; the machine's own choice if none.
    pub interface: Option<Interface>,
    /// Its place among the drives of its interface.
    pub index: Option<u64>,
    /// Whether the guest sees a volatile write cache.
    pub write_cache: bool,
}

/// A node, for listings.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node.
    pub node: Arc<BlockNode>,
    /// Nodes below it, each with what it is to this one.
    pub children: Vec<(&'static str, String)>,
    /// Who uses it, in words.
    pub users: Vec<String>,
}

/// A device's hold on a node, for listings.
#[derive(Debug, Clone)]
pub struct BackendInfo {
    /// The device, as it called itself.
    pub device: String,
    /// The drive it attached to, if it was not a bare node.
    pub drive: Option<String>,
    /// The node.
    pub node: Arc<BlockNode>,
    /// What it did so far.
    pub stats: BlockStats,
}

pub(crate) struct Shared {
    engine: Arc<dyn IoEngine>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Entry>,
    drives: BTreeMap<String, Drive>,
    backends: BTreeMap<u64, BackendRecord>,
    next_backend: u64,
    next_unnamed: u64,
}

struct Entry {
    node: Arc<BlockNode>,
    owner: Owner,
    users: Vec<User>,
}

/// Who made a node, and takes it away again.
#[derive(Clone, PartialEq, Eq)]
enum Owner {
    Monitor,
    Drive(String),
    Node(String),
}

#[derive(Clone)]
struct User {
    key: UserKey,
    /// Who it is, in QEMU's words.
    name: String,
    role: &'static str,
    used: Permissions,
    shared: Permissions,
}

#[derive(Clone, PartialEq, Eq)]
enum UserKey {
    Node(String),
    Backend(u64),
    Drive,
}

struct BackendRecord {
    device: String,
    drive: Option<String>,
    node: Arc<BlockNode>,
    counters: Arc<Counters>,
}

impl BlockGraph {
    /// An empty graph, whose requests a pool of threads performs.
    pub fn new() -> Result<Self, BlockError> {
        Ok(Self::with_engine(Arc::new(ThreadPool::new()?)))
    }

    /// An empty graph on another engine.
    pub fn with_engine(engine: Arc<dyn IoEngine>) -> Self {
        Self { shared: Arc::new(Shared { engine, state: Mutex::default() }) }
    }

    /// Adds a node and those nested in it, as `blockdev-add` does with its arguments.
    pub fn add_json(&self, arguments: &Json) -> Result<Arc<BlockNode>, BlockError> {
        self.add(NodeOptions::from_options(Options::from_json("", arguments)?)?)
    }

    /// Adds a node and those nested in it: all of them or none.
    pub fn add(&self, options: NodeOptions) -> Result<Arc<BlockNode>, BlockError> {
        let name = options.node_name.clone().ok_or(BlockError::NoNodeName)?;
        self.shared.add_tree(&mut locked(&self.shared.state), &options, name, Owner::Monitor)
    }

    /// Adds a drive with its nodes. Without an id it is called after its interface: `virtio0`, `none1`.
    pub fn add_drive(&self, options: DriveOptions) -> Result<Drive, BlockError> {
        let mut state = locked(&self.shared.state);
        let id = state.drive_id(&options)?;
        let node_name = options.node.node_name.clone().unwrap_or_else(|| state.unnamed());
        let owner = Owner::Drive(id.clone());
        let node = self.shared.add_tree(&mut state, &options.node, node_name, owner)?;
        let DriveOptions { interface, index, write_cache, .. } = options;
        let drive = Drive { id, node_name: node.name().to_owned(), interface, index, write_cache };
        if let Some(entry) = state.nodes.get_mut(&drive.node_name) {
            let (used, shared) = (Permissions::empty(), Permissions::all());
            let name = format!("block device '{}'", drive.id);
            entry.users.push(User { key: UserKey::Drive, name, role: "root", used, shared });
        }
        state.drives.insert(drive.id.clone(), drive.clone());
        Ok(drive)
    }

    /// Removes a node that a `-blockdev` or `blockdev-add` made, and the nodes nested in it.
    pub fn del(&self, name: &str) -> Result<(), BlockError> {
        let mut state = locked(&self.shared.state);
        let entry = state.nodes.get(name).ok_or_else(|| BlockError::NoSuchNode(name.to_owned()))?;
        if entry.users.iter().any(|user| !matches!(user.key, UserKey::Node(_))) {
            return Err(BlockError::NodeInUse(name.to_owned()));
        }
        if entry.owner != Owner::Monitor {
            return Err(BlockError::NotOwned(name.to_owned()));
        }
        if !entry.users.is_empty() {
            return Err(BlockError::UsedByNode(name.to_owned()));
        }
        state.remove(name);
        Ok(())
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<Arc<BlockNode>> {
        locked(&self.shared.state).nodes.get(name).map(|entry| entry.node.clone())
    }

    /// The drive of this id.
    pub fn drive(&self, id: &str) -> Option<Drive> {
        locked(&self.shared.state).drives.get(id).cloned()
    }

    /// All drives, by id.
    pub fn drives(&self) -> Vec<Drive> {
        locked(&self.shared.state).drives.values().cloned().collect()
    }

    /// The node that a drive's id or a node's name stands for.
    pub fn find(&self, device_or_node: &str) -> Result<Arc<BlockNode>, BlockError> {
        let state = locked(&self.shared.state);
        let name = state.drives.get(device_or_node).map_or(device_or_node, |drive| &drive.node_name);
        let entry = state.nodes.get(name).ok_or_else(|| BlockError::NotFound(device_or_node.to_owned()))?;
        Ok(entry.node.clone())
    }

    /// Attaches `device` (its id, for messages) to a drive or a node, to read, and with `writable` to write as the
    /// only one.
    pub fn attach(&self, device_or_node: &str, device: &str, writable: bool) -> Result<BlockBackend, BlockError> {
        let used = if writable { Permissions::READ_WRITE } else { Permissions::CONSISTENT_READ };
        self.attach_with(device_or_node, device, used, Permissions::SHARED_BY_DEVICE)
    }

    /// Attaches `device` with permissions of its choice. `shared` with [`Permissions::WRITE`] lets others write, as
    /// `share-rw=on` does.
    pub fn attach_with(
        &self,
        device_or_node: &str,
        device: &str,
        used: Permissions,
        shared: Permissions,
    ) -> Result<BlockBackend, BlockError> {
        let node = self.find(device_or_node)?;
        let mut state = locked(&self.shared.state);
        let drive = state.drives.get(device_or_node).cloned();
        let id = state.next_backend;
        let name = format!("block device '{}'", drive.as_ref().map_or(device, |d| &d.id));
        let user = User { key: UserKey::Backend(id), name, role: "root", used, shared };
        state.set_user(node.name(), user)?;
        state.next_backend += 1;
        let counters = Arc::<Counters>::default();
        let write_cache = AtomicBool::new(drive.as_ref().is_none_or(|d| d.write_cache));
        let (device, drive) = (device.to_owned(), drive.map(|d| d.id));
        state.backends.insert(id, BackendRecord { device, drive, node: node.clone(), counters: counters.clone() });
        Ok(BlockBackend::new(Attachment { graph: self.shared.clone(), id, node, used, write_cache, counters }))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let info = |entry: &Entry| NodeInfo {
            node: entry.node.clone(),
            children: entry.node.driver().children().iter().map(|(role, c)| (*role, c.name().to_owned())).collect(),
            users: entry.users.iter().map(|user| user.name.clone()).collect(),
        };
        locked(&self.shared.state).nodes.values().map(info).collect()
    }

    /// All devices that are attached, in the order in which they came.
    pub fn backends(&self) -> Vec<BackendInfo> {
        let info = |record: &BackendRecord| BackendInfo {
            device: record.device.clone(),
            drive: record.drive.clone(),
            node: record.node.clone(),
            stats: record.counters.snapshot(),
        };
        locked(&self.shared.state).backends.values().map(info).collect()
    }

    /// Waits until nothing is in flight on any node. The submitters have been stopped before.
    pub fn drain_all(&self) {
        let nodes: Vec<_> = locked(&self.shared.state).nodes.values().map(|entry| entry.node.clone()).collect();
        nodes.iter().for_each(|node| node.drain());
    }
}

impl Shared {
    fn add_tree(
        &self,
        state: &mut State,
        options: &NodeOptions,
        name: String,
        owner: Owner,
    ) -> Result<Arc<BlockNode>, BlockError> {
        let mut opened = Vec::new();
        let node = self.open(state, options, name, owner, &mut opened)?;
        for (name, owner, node) in opened {
            state.nodes.insert(name, Entry { node, owner, users: Vec::new() });
        }
        // Nobody uses the new nodes yet: they neither need anything nor keep anything from others.
        state.adopt(&node)?;
        Ok(node)
    }

    /// Opens a node and those nested in it, the lowest first, without entering them.
    fn open(
        &self,
        state: &mut State,
        options: &NodeOptions,
        name: String,
        owner: Owner,
        opened: &mut Vec<(String, Owner, Arc<BlockNode>)>,
    ) -> Result<Arc<BlockNode>, BlockError> {
        state.check_name(&name, options.node_name.is_some())?;
        if opened.iter().any(|(other, ..)| *other == name) {
            return Err(BlockError::DuplicateNode(name));
        }
        let mut read_only = options.read_only;
        let driver: Box<dyn BlockDriver> = match &options.kind {
            NodeKind::File(file) => {
                let engine = self.engine.clone();
                let file = FileDriver::open(file, options.cache, read_only, options.auto_read_only, engine)?;
                read_only = file.read_only;
                Box::new(file.driver)
            }
            NodeKind::Raw(raw) => {
                let child = match &raw.file {
                    ChildRef::Node(child) => state.node_above(child, opened)?,
                    ChildRef::Inline(child) => {
                        let below = child.node_name.clone().unwrap_or_else(|| state.unnamed());
                        if below == name {
                            return Err(BlockError::DuplicateNode(name));
                        }
                        self.open(state, child, below, Owner::Node(name.clone()), opened)?
                    }
                };
                read_only |= options.auto_read_only && child.is_read_only();
                Box::new(RawDriver::new(raw, child)?)
            }
        };
        let NodeOptions { cache, discard, detect_zeroes, .. } = *options;
        let settings = NodeSettings { name: name.clone(), read_only, cache, discard, detect_zeroes };
        let node = Arc::new(BlockNode::new(settings, driver, self.engine.clone()));
        opened.push((name, owner, node.clone()));
        Ok(node)
    }

    pub(crate) fn detach(&self, id: u64) {
        let mut state = locked(&self.state);
        if let Some(record) = state.backends.remove(&id) {
            state.remove_user(record.node.name(), &UserKey::Backend(id));
        }
    }
}

impl State {
    fn drive_id(&self, options: &DriveOptions) -> Result<String, BlockError> {
        let Some(id) = options.id.clone() else {
            let interface = if options.interface == Some(Interface::None) { "none" } else { "virtio" };
            let taken = |id: &String| self.drives.contains_key(id) || self.nodes.contains_key(id);
            let numbers = options.index.unwrap_or(0)..;
            let free = numbers.map(|n| format!("{interface}{n}")).find(|id| !taken(id));
            return Ok(free.unwrap_or_default());
        };
        if self.drives.contains_key(&id) {
            return Err(BlockError::DuplicateDrive(id));
        }
        if self.nodes.contains_key(&id) {
            return Err(BlockError::DriveIsNode(id));
        }
        Ok(id)
    }

    fn check_name(&self, name: &str, given: bool) -> Result<(), BlockError> {
        if given && !is_identifier(name) {
            return Err(BlockError::InvalidNodeName(name.to_owned()));
        }
        if self.drives.contains_key(name) {
            return Err(BlockError::NodeNameIsDrive(name.to_owned()));
        }
        if self.nodes.contains_key(name) {
            return Err(BlockError::DuplicateNode(name.to_owned()));
        }
        if name.len() > MAX_NAME {
            return Err(BlockError::NodeNameTooLong(name.to_owned()));
        }
        Ok(())
    }

    /// A name for a node that got none. Users cannot give such names.
    fn unnamed(&mut self) -> String {
        self.next_unnamed += 1;
        format!("#block{:03}", self.next_unnamed)
    }

    /// The node that a new one refers to by name.
    fn node_above(&self, name: &str, opened: &[(String, Owner, Arc<BlockNode>)]) -> Result<Arc<BlockNode>, BlockError> {
        let new = opened.iter().find(|(other, ..)| other == name).map(|(_, _, node)| node.clone());
        let node = new.or_else(|| {
            let name = self.drives.get(name).map_or(name, |drive| &drive.node_name);
            self.nodes.get(name).map(|entry| entry.node.clone())
        });
        let node = node.ok_or_else(|| BlockError::NotFound(name.to_owned()))?;
        if node.depth() >= MAX_DEPTH { Err(BlockError::TooDeep(name.to_owned())) } else { Ok(node) }
    }

    /// Enters a node as a user of those below it.
    fn adopt(&mut self, node: &Arc<BlockNode>) -> Result<(), BlockError> {
        for (role, child) in node.driver().children() {
            self.adopt_if_new(&child)?;
            let (used, shared) = node.driver().child_permissions(Permissions::empty(), Permissions::all());
            let key = UserKey::Node(node.name().to_owned());
            let name = format!("node '{}'", node.name());
            self.set_user(child.name(), User { key, name, role, used, shared })?;
        }
        Ok(())
    }

    /// A nested node comes with its parent and has no user yet; one that was there before has been entered.
    fn adopt_if_new(&mut self, child: &Arc<BlockNode>) -> Result<(), BlockError> {
        let nested = self.nodes.get(child.name()).is_some_and(|entry| matches!(entry.owner, Owner::Node(_)));
        if nested { self.adopt(child) } else { Ok(()) }
    }

    /// Adds or changes a user of a node, and passes it on to the nodes below; or leaves everything as it was.
    fn set_user(&mut self, node: &str, user: User) -> Result<(), BlockError> {
        let entry = self.nodes.get_mut(node).ok_or_else(|| BlockError::NotFound(node.to_owned()))?;
        let old = entry.users.clone();
        match entry.users.iter_mut().find(|other| other.key == user.key) {
            Some(other) => *other = user,
            None => entry.users.push(user),
        }
        let result = self.apply(node);
        if result.is_err() {
            if let Some(entry) = self.nodes.get_mut(node) {
                entry.users = old;
            }
            self.relax(node);
        }
        result
    }

    fn remove_user(&mut self, node: &str, key: &UserKey) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.users.retain(|user| user.key != *key);
        }
        self.relax(node);
    }

    /// Applies permissions that are no stricter than those in force.
    fn relax(&mut self, node: &str) {
        if let Err(error) = self.apply(node) {
            tracing::error!(%error, node, "cannot give back permissions of a block node");
        }
    }

    /// Makes a node and those below it follow its users.
    fn apply(&mut self, name: &str) -> Result<(), BlockError> {
        let Some(entry) = self.nodes.get(name) else { return Ok(()) };
        check_users(entry)?;
        let used = entry.users.iter().fold(Permissions::empty(), |all, user| all | user.used);
        let shared = entry.users.iter().fold(Permissions::all(), |all, user| all & user.shared);
        let node = entry.node.clone();
        node.driver().set_permissions(used, shared)?;
        for (role, child) in node.driver().children() {
            let (used, shared) = node.driver().child_permissions(used, shared);
            let key = UserKey::Node(name.to_owned());
            self.set_user(child.name(), User { key, name: format!("node '{name}'"), role, used, shared })?;
        }
        Ok(())
    }

    /// Removes a node that nobody uses, and the nodes nested in it.
    fn remove(&mut self, name: &str) {
        let Some(entry) = self.nodes.remove(name) else { return };
        for (_, child) in entry.node.driver().children() {
            self.remove_user(child.name(), &UserKey::Node(name.to_owned()));
            let nested = self.nodes.get(child.name()).is_some_and(|c| c.owner == Owner::Node(name.to_owned()));
            if nested {
                self.remove(child.name());
            }
        }
    }
}

/// Whether a node can be all that its users want.
fn check_users(entry: &Entry) -> Result<(), BlockError> {
    let node = &entry.node;
    for (i, a) in entry.users.iter().enumerate() {
        for b in entry.users.iter().skip(i + 1) {
            conflict(node, a, b)?;
            conflict(node, b, a)?;
        }
    }
    if !entry.users.iter().any(|user| user.used.contains(Permissions::WRITE)) {
        return Ok(());
    }
    if node.is_read_only() {
        return Err(BlockError::ReadOnly(node.name().to_owned()));
    }
    let (length, alignment) = (node.length(), node.limits().request_alignment);
    if !length.is_multiple_of(alignment) {
        return Err(BlockError::UnalignedLength { node: node.name().to_owned(), length, alignment });
    }
    Ok(())
}

fn conflict(node: &BlockNode, a: &User, b: &User) -> Result<(), BlockError> {
    let permissions = a.used - b.shared;
    if permissions.is_empty() {
        return Ok(());
    }
    let node = node.name().to_owned();
    let says = |user: &User| format!("{} (uses node '{node}' as '{}' child)", user.name, user.role);
    Err(BlockError::Conflict { requires: says(a), unshares: says(b), permissions, node })
}
