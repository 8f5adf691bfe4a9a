//! moat's own Kubernetes types.
