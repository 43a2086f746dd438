//! The `raw` driver: a node without a format, or the part of it between `offset` and `offset + size`.

use std::sync::Arc;

use crate::node::{BlockDriver, BlockNode, Limits};
use crate::options::RawOptions;
use crate::{BlockError, Request, SECTOR_SIZE};

/// A window on the node below.
pub(crate) struct RawDriver {
    child: Arc<BlockNode>,
    offset: u64,
    length: u64,
}

impl RawDriver {
    pub(crate) fn new(options: &RawOptions, child: Arc<BlockNode>) -> Result<Self, BlockError> {
        let (offset, length) = (options.offset, child.length());
        let after = length.checked_sub(offset).ok_or(BlockError::RawOffset { offset, length })?;
        let length = match options.size {
            Some(size) if size > after => return Err(BlockError::RawSize { offset, size, length }),
            Some(size) => size,
            // An odd offset leaves a part of a sector at the end, which no guest can reach.
            None => after - after % SECTOR_SIZE,
        };
        Ok(Self { child, offset, length })
    }
}

impl BlockDriver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn limits(&self) -> Limits {
        self.child.limits()
    }

    fn submit(&self, mut request: Request) {
        // Inside of the window, and so inside of the node below.
        request.offset += self.offset;
        self.child.submit(request);
    }

    fn children(&self) -> Vec<(&'static str, Arc<BlockNode>)> {
        vec![("file", self.child.clone())]
    }
}
