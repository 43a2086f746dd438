//! Chooses how operations follow one another: by tail calls where the compiler makes them, by a loop where it does not.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(tail_calls)");
    let level = std::env::var("OPT_LEVEL").unwrap_or_default();
    let optimised = matches!(level.as_str(), "2" | "3" | "s");
    if optimised {
        println!("cargo::rustc-cfg=tail_calls");
    }
}
