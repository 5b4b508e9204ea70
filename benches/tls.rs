//! A TLS record in, opened, sealed for the other side, and out: what the relay does to every byte besides the
//! socket calls. 16 KiB is the largest record (RFC 8446 5.1), 1.3 KiB what fits a packet.

mod ends;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dcv_splice::runtime::buffer::Buffer;

fn open_and_seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open and seal");
    for bytes in [16 * 1024, 1_300] {
        let (mut far, mut near) = ends::connected();
        let (mut onward, mut beyond) = ends::connected();
        let plain: Vec<u8> = (0..bytes).map(|at: usize| at.to_le_bytes()[0]).collect();
        let mut outgoing = Buffer::default();
        // Records count up, so each has to be sealed anew: outside of the time that counts.
        let mut pass = || {
            let mut record = Buffer::default();
            far.seal(&plain, &mut record).expect("an open end");
            let mut record = record.filled().to_vec();
            outgoing.clear();
            let started = Instant::now();
            let mut sealed = Ok(());
            near.open(
                &mut record,
                &mut |plain: &[u8]| sealed = onward.seal(plain, &mut outgoing),
                &mut Buffer::default(),
            )
            .expect("a whole record");
            let took = started.elapsed();
            sealed.expect("an open end");
            (took, ends::open(&mut beyond, outgoing.filled()).0)
        };
        assert_eq!(pass().1, plain);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{bytes} B")), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| black_box(pass()).0).sum::<Duration>());
        });
    }
}

criterion_group!(benches, open_and_seal);
criterion_main!(benches);
