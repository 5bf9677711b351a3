//! Costs within one thread, where a second process would only add noise.

use std::hint::black_box;
use std::time::Duration;

use benches::floor::COPIES;
use criterion::{BenchmarkId, Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
        .configure_from_args();
    memcpy(&mut criterion);
    criterion.final_summary();
}

fn memcpy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memcpy");
    for bytes in COPIES {
        let (source, mut target) = (vec![1_u8; bytes], vec![0_u8; bytes]);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| black_box(&mut target[..]).copy_from_slice(black_box(&source)));
        });
    }
    group.finish();
}
