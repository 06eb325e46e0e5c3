//! `preprocessor_config.json`: how an image becomes a model's input.

use super::resize::Filter;
use crate::Problems;
use crate::arch::fields::Fields;
use crate::files::Folder;
use serde_json::Value;

const FILE: &str = "preprocessor_config.json";
/// The longest side of what a model is given.
const MAX_SIDE: u64 = 4096;
/// Below this size a ConvNeXt processor crops what it resized.
const LEAST_UNCROPPED: usize = 384;

/// To which size an image is brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Resize {
    /// Height and width, whatever they were.
    To(usize, usize),
    /// The shorter side, keeping proportions.
    Shortest(usize),
}

/// What is done with an image, in this order.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) resize: Option<(Resize, Filter)>,
    /// The values of each byte, for each colour: rescaled and normalised.
    pub(super) tables: Box<[[f32; 256]; 3]>,
    /// Of the middle that is kept; zeros stand where the image is smaller.
    pub(super) height: usize,
    pub(super) width: usize,
}

/// The processors of Hugging Face that differ in what their fields mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One number as `size` is both sides.
    Square,
    /// One number as `size` is the shorter side.
    Shortest,
    /// Likewise, and small images are cropped by `crop_pct`.
    ConvNext,
}

const KINDS: [(&str, Kind); 5] = [
    ("ViT", Kind::Square),
    ("DeiT", Kind::Square),
    ("ConvNext", Kind::ConvNext),
    ("Bit", Kind::Shortest),
    ("CLIP", Kind::Shortest),
];

impl Steps {
    /// Reads the file, which must be there. `default_processor` is whose it is if it does not say.
    pub(super) fn read(folder: &Folder, default_processor: &str, problems: &mut Problems) -> Option<Self> {
        let before = problems.count();
        let Some(json) = folder.json(FILE, problems) else {
            if problems.count() == before {
                problems.push(format!("{FILE}: no such file: the vision family needs it"));
            }
            return None;
        };
        let steps = Fields { file: FILE, json: &json, problems }.steps(default_processor);
        (problems.count() == before).then_some(steps)
    }
}

impl Fields<'_> {
    fn steps(&mut self, default_processor: &str) -> Steps {
        let kind = self.kind(default_processor);
        let tables = self.tables();
        let (mut resize, mut crop) = (None, None);
        if self.flag("do_resize", true) {
            let filter = self.filter();
            let to = match (self.sides("size", kind != Kind::Square), kind) {
                (Resize::Shortest(side), Kind::ConvNext) if side >= LEAST_UNCROPPED => Resize::To(side, side),
                (Resize::Shortest(side), Kind::ConvNext) => {
                    crop = Some((side, side));
                    Resize::Shortest((side as f64 / self.kept_share()) as usize)
                }
                (to, _) => to,
            };
            resize = Some((to, filter));
        }
        if self.flag("do_center_crop", false) {
            if kind == Kind::ConvNext {
                self.wrong("do_center_crop", "false with a ConvNeXt processor, which crops by `crop_pct`");
            }
            match self.sides("crop_size", false) {
                Resize::To(height, width) => crop = Some((height, width)),
                Resize::Shortest(_) => self.wrong("crop_size", "a height and a width"),
            }
        }
        let (height, width) = match (crop, resize) {
            (Some(sides), _) => sides,
            (None, Some((Resize::To(height, width), _))) => (height, width),
            (None, _) => {
                self.problems.push(format!(
                    "{FILE}: expected `do_resize` to a height and width, or `do_center_crop`: a model takes \
                     images of one size"
                ));
                (1, 1)
            }
        };
        Steps { resize, tables, height, width }
    }

    fn kind(&mut self, default: &str) -> Kind {
        let key = ["image_processor_type", "feature_extractor_type"]
            .into_iter()
            .find(|key| self.get(key).is_some());
        let name = key.and_then(|key| self.get(key)?.as_str()).unwrap_or(default);
        let found = KINDS.iter().find(|(prefix, _)| {
            let rest = name.strip_prefix(prefix);
            let rest = rest.map(|rest| rest.strip_suffix("Fast").unwrap_or(rest));
            matches!(rest, Some("ImageProcessor" | "FeatureExtractor"))
        });
        match (found, key) {
            (Some((_, kind)), _) => *kind,
            (None, key) => {
                let names = KINDS.map(|(prefix, _)| format!("{prefix}ImageProcessor")).join(", ");
                self.wrong(key.unwrap_or("image_processor_type"), &format!("one of {names}"));
                Kind::Square
            }
        }
    }

    /// PIL's number of a filter.
    fn filter(&mut self) -> Filter {
        match self.get("resample").and_then(Value::as_u64) {
            Some(1) => Filter::Lanczos,
            Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            Some(4) => Filter::Box,
            Some(5) => Filter::Hamming,
            _ => {
                self.wrong("resample", "1 (Lanczos), 2 (bilinear), 3 (bicubic), 4 (box) or 5 (Hamming)");
                Filter::Bilinear
            }
        }
    }

    /// A size as one number or as an object; one number is the shorter side, if `is_shorter` says so.
    fn sides(&mut self, key: &str, is_shorter: bool) -> Resize {
        let side =
            |value: &Value| value.as_u64().filter(|side| (1..=MAX_SIDE).contains(side)).map(|s| s as usize);
        let read = |value: &Value| {
            let Some(object) = value.as_object() else {
                return side(value).map(|s| if is_shorter { Resize::Shortest(s) } else { Resize::To(s, s) });
            };
            let of = |key: &str| object.get(key).and_then(side);
            match object.iter().filter(|(_, value)| !value.is_null()).count() {
                1 => of("shortest_edge").map(Resize::Shortest),
                2 => of("height").zip(of("width")).map(|(height, width)| Resize::To(height, width)),
                _ => None,
            }
        };
        self.get(key).and_then(read).unwrap_or_else(|| {
            self.wrong(key, &format!("height and width, or shortest_edge, of 1 to {MAX_SIDE}"));
            Resize::To(1, 1)
        })
    }

    /// The share of a resized image's shorter side that is kept.
    fn kept_share(&mut self) -> f64 {
        let share = self.get("crop_pct").map_or(Some(224.0 / 256.0), Value::as_f64);
        share.filter(|share| (0.1..=1.0).contains(share)).unwrap_or_else(|| {
            self.wrong("crop_pct", "0.1 to 1");
            1.0
        })
    }

    /// What each byte becomes, for each colour.
    fn tables(&mut self) -> Box<[[f32; 256]; 3]> {
        let factor = match self.flag("do_rescale", true) {
            true => {
                self.get("rescale_factor").map_or(Some(1.0 / 255.0), Value::as_f64).unwrap_or_else(|| {
                    self.wrong("rescale_factor", "a number");
                    1.0
                })
            }
            false => 1.0,
        };
        let (mut mean, mut std) = ([0.0; 3], [1.0; 3]);
        if self.flag("do_normalize", true) {
            mean = self.colours("image_mean", |_| true);
            std = self.colours("image_std", |value| value > 0.0);
        }
        let mut tables = Box::new([[0.0; 256]; 3]);
        for (table, (mean, std)) in tables.iter_mut().zip(mean.into_iter().zip(std)) {
            for (byte, value) in table.iter_mut().enumerate() {
                *value = ((byte as f64 * factor) as f32 - mean) / std;
            }
        }
        tables
    }

    /// One number, or one for each colour.
    fn colours(&mut self, key: &str, fits: impl Fn(f32) -> bool) -> [f32; 3] {
        let read = |value: &Value| match value.as_array() {
            None => value.as_f64().map(|value| [value as f32; 3]),
            Some(values) => {
                let values: Option<Vec<f32>> = values.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
                values?.try_into().ok()
            }
        };
        let fits = |values: &[f32; 3]| values.iter().all(|value| value.is_finite() && fits(*value));
        self.get(key).and_then(read).filter(fits).unwrap_or_else(|| {
            let expected = if key == "image_std" { "numbers above 0" } else { "numbers" };
            self.wrong(key, &format!("{expected}: one, or three, for red, green and blue"));
            [1.0; 3]
        })
    }
}
