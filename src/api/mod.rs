//! The objects of Entente, by API version.

pub mod v1alpha1;
