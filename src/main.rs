//! One role per subcommand.

fn main() {}
