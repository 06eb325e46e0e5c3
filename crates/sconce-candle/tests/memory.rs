//! What a batch allocates once its instance has run one like it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use sconce_candle::Package;
use sconce_core::{Backend, Batch, DataType, DeviceId, ModelInput, Tensor};
use std::path::Path;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Values are computed in memory that is kept: this is more than the answers and lists of eight requests take, and less than
/// any layer's values.
const MOST_BYTES: u64 = 4096;
const REQUESTS: usize = 8;

fn run(backend: &mut dyn Backend, inputs: Vec<ModelInput>) {
    backend.submit(Batch { inputs }, &|| {}).unwrap();
    assert!(backend.collect().unwrap().outputs.into_iter().all(|output| output.is_ok()));
}

fn check(package: &Path, of: &str, tensor: impl Fn() -> (&'static str, Tensor)) {
    for dtype in ["f32", "bf16", "int8"] {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(package).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        let settings = std::fs::read_to_string(package.join("model.toml")).unwrap_or_default();
        std::fs::write(dir.path().join("model.toml"), format!("dtype = '{dtype}'\n{settings}")).unwrap();
        let model = Package::open(dir.path(), DeviceId::Cpu).unwrap().load().unwrap();
        let mut backend = model.instance().unwrap();
        let input = || model.prepare(model.signature().check([tensor()]).unwrap()).unwrap();
        let mut allocated = || {
            let inputs: Vec<ModelInput> = (0..REQUESTS).map(|_| input()).collect();
            let before = dhat::HeapStats::get().total_bytes;
            run(&mut *backend, inputs);
            dhat::HeapStats::get().total_bytes - before
        };
        let first = allocated();
        let second = allocated();
        assert!(
            first > 2 * MOST_BYTES,
            "{of} in {dtype}: the first batch took {first} bytes, too few to tell"
        );
        assert!(second < MOST_BYTES, "{of} in {dtype}: the second batch took {second} bytes");
    }
}

/// One test: the counts are the whole process's.
#[test]
fn a_batch_like_one_before_allocates_nothing_of_4_kib_or_more() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    check(&root.join("tests/data/bert_embedding"), "bert", || {
        let ids: Vec<u8> = (5..29i64).flat_map(i64::to_le_bytes).collect();
        ("input_ids", Tensor::new(DataType::Int64, vec![1, 24], ids.into()).unwrap())
    });
    for name in ["vit", "resnet_bottleneck"] {
        check(&root.join("tests/data/vision").join(name), name, || {
            let image = vec![0; 3 * 32 * 32 * 4];
            ("pixel_values", Tensor::new(DataType::Fp32, vec![1, 3, 32, 32], image.into()).unwrap())
        });
    }
    check(&root.join("../sconce/demo/breast_cancer/2"), "tabular", || {
        let row = vec![0; 8 * 30 * 4];
        ("features", Tensor::new(DataType::Fp32, vec![8, 30], row.into()).unwrap())
    });
}
