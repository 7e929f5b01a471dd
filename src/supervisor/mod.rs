//! goreman and beyond: Procfile stacks.
