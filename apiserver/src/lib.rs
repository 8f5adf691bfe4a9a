//! Kubernetes objects from an API server, as the engine takes them.
