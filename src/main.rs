//! Picks the program to be from the name it was started under, or from the first word.

fn main() {}
