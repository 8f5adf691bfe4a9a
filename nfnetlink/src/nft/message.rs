//! Numbers of nf_tables messages (`NFT_MSG_*`, linux/netfilter/nf_tables.h).

pub(crate) const NEW_TABLE: u8 = 0;
pub(crate) const GET_TABLE: u8 = 1;
pub(crate) const DEL_TABLE: u8 = 2;
pub(crate) const NEW_CHAIN: u8 = 3;
pub(crate) const GET_CHAIN: u8 = 4;
pub(crate) const DEL_CHAIN: u8 = 5;
pub(crate) const NEW_RULE: u8 = 6;
pub(crate) const GET_RULE: u8 = 7;
pub(crate) const DEL_RULE: u8 = 8;
pub(crate) const NEW_SET: u8 = 9;
pub(crate) const GET_SET: u8 = 10;
pub(crate) const DEL_SET: u8 = 11;
pub(crate) const NEW_SETELEM: u8 = 12;
pub(crate) const GET_SETELEM: u8 = 13;
pub(crate) const DEL_SETELEM: u8 = 14;
pub(crate) const NEW_GEN: u8 = 15;
pub(crate) const GET_GEN: u8 = 16;
pub(crate) const NEW_OBJ: u8 = 18;
pub(crate) const GET_OBJ: u8 = 19;
pub(crate) const DEL_OBJ: u8 = 20;
pub(crate) const NEW_FLOWTABLE: u8 = 22;
pub(crate) const DEL_FLOWTABLE: u8 = 24;

/// The number of counters among the objects (`NFT_OBJECT_COUNTER`).
pub(crate) const COUNTER: u32 = 1;
