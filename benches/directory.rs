//! A directory of 10,000 agents: reading it, and finding one in it by a request's path and host.

use std::fmt::Write;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use dcv_splice::access::route::{AgentDomain, Route};
use dcv_splice::agents::directory::{Directory, DirectoryRules};
use dcv_splice::agents::directory_text::Format;

const AGENTS: u32 = 10_000;

fn texts() -> [(Format, String); 2] {
    let (mut toml, mut json) = (String::new(), Vec::new());
    for number in 0..AGENTS {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        writeln!(toml, "[[agent]]\nname = \"gpu-{number:05}\"\naddress = \"{address}\"\npools = [\"cad\"]\n")
            .expect("memory");
        json.push(format!(
            "{{\"name\": \"gpu-{number:05}\", \"address\": \"{address}\", \"pools\": [\"cad\"]}}"
        ));
    }
    [(Format::Toml, toml), (Format::Json, format!("{{\"agent\": [{}]}}", json.join(",\n")))]
}

fn read(text: &str, format: Format) -> Directory {
    let rules = DirectoryRules { ports: &[8443], is_allowed: &|_| true, names_files: true };
    Directory::parse(text, format, rules).expect("a directory")
}

fn directory(criterion: &mut Criterion) {
    for (format, text) in texts() {
        criterion.bench_function(&format!("read 10,000 agents, {format:?}"), |bencher| {
            bencher.iter(|| read(black_box(&text), format).agents().len());
        });
    }
    let [(format, text), _] = texts();
    let directory = read(&text, format);
    criterion.bench_function("change the state of one of 10,000", |bencher| {
        let state = dcv_splice::agents::directory::AgentState::Drain;
        bencher.iter(|| directory.with_states([("gpu-05000", state)]).agents().len());
    });
    criterion.bench_function("find an agent by its name in a path", |bencher| {
        bencher.iter(|| matches!(Route::of(black_box("/gpu-05000/x"), &directory), Route::Agent { .. }));
    });
    let domain: AgentDomain = "desks.example.com".parse().expect("a domain");
    criterion.bench_function("find an agent by a host name", |bencher| {
        let host = Some(black_box("gpu-05000.desks.example.com"));
        bencher.iter(|| matches!(Route::of_request(host, "/x", Some(&domain), &directory), Route::Host(_)));
    });
}

criterion_group!(benches, directory);
criterion_main!(benches);
