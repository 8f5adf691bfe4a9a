//! Compiles the protocol's file.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["moat/v1/policy.proto"], ["proto"])?;
    // The comments are for people who read the file; as Rust they would be half sentences under other rules.
    tonic_prost_build::configure().disable_comments(["."]).compile_fds(files)?;
    Ok(())
}
