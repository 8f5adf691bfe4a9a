//! Tables.

use super::userdata::{COMMENT, UserData};
use super::{TableId, encode_name};
use crate::wire::Writer;

/// Flags of a table (`NFT_TABLE_F_*`).
pub mod table_flags {
    /// Its base chains see no packets.
    pub const DORMANT: u32 = 1;
    /// Only the socket that made or took it over may change it (Linux 5.12).
    pub const OWNER: u32 = 2;
    /// It stays when its owner's socket closes, and anybody may then take it over (Linux 6.9).
    pub const PERSIST: u32 = 4;
}

/// A table to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family and name.
    pub id: TableId,
    /// Bits of [`table_flags`].
    pub flags: u32,
    /// What is kept with it.
    pub userdata: UserData,
}

impl Table {
    /// A table without flags.
    pub fn new(id: TableId) -> Self {
        Table { id, flags: 0, userdata: UserData::new() }
    }

    /// With these flags.
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// With this user data.
    pub fn userdata(mut self, userdata: UserData) -> Self {
        self.userdata = userdata;
        self
    }

    pub(crate) fn encode(&self, writer: &mut Writer) {
        encode_name(writer, 1, &self.id.name);
        writer.be32(2, self.flags);
        self.userdata.encode(writer, 6, COMMENT, &[]);
    }
}
