//! nfnetlink
