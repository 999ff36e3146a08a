//! `entente.dev/v1alpha1`.
