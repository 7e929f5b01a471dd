mod transcripts;

fn main() {}
