//! What one member does unasked: compact by age, agree on a version, publish itself, raise NOSPACE,
//! compare itself with the others.
//!
//! Each duty is a task with a `run` that ends when the desk stops. Duties read what apply shows and change things
//! only by proposing them, like any client.

pub mod compactor;
pub mod integrity;
pub mod nospace;
pub mod publish;
pub mod version;

#[cfg(test)]
mod tests;
