//! What an image's first bytes say: read before any decoder sees it, so that its size is known and bounded.

use sconce_core::abbreviate;

/// The most places along a side.
const MAX_SIDE: usize = 16_384;
/// The most places.
pub(super) const MAX_PLACES: usize = 64 << 20;
/// A JPEG has a handful of segments before its frame header; one with more than this is no picture.
const MAX_SEGMENTS: usize = 4096;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
}

/// An image's format and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Header {
    /// Reads it; the error says what was expected and what came.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let (format, name) = match bytes {
            [0xff, 0xd8, 0xff, ..] => (Format::Jpeg, "JPEG"),
            _ if bytes.starts_with(PNG_SIGNATURE) => (Format::Png, "PNG"),
            _ => return Err(format!("expected a PNG or JPEG image, got {}", first_bytes(bytes))),
        };
        let sides = if format == Format::Png { png_sides(bytes) } else { jpeg_sides(bytes) };
        let Some((height, width)) = sides else {
            return Err(format!("expected a whole {name} image, got {} bytes without its size", bytes.len()));
        };
        let fits = (1..=MAX_SIDE).contains(&height) && (1..=MAX_SIDE).contains(&width);
        if !fits || height * width > MAX_PLACES {
            return Err(format!(
                "expected 1 to {MAX_SIDE} pixels along a side and at most {MAX_PLACES} in all, got {width} by {height}"
            ));
        }
        Ok(Self { format, height, width })
    }
}

fn first_bytes(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let first = String::from_utf8_lossy(&bytes[..bytes.len().min(8)]).into_owned();
    format!("{} bytes that begin with {:?}", bytes.len(), abbreviate(&first))
}

/// Height and width as the first chunk has them, which must be IHDR.
fn png_sides(bytes: &[u8]) -> Option<(usize, usize)> {
    let rest = bytes.get(PNG_SIGNATURE.len() + 4..)?.strip_prefix(b"IHDR")?;
    let (width, rest) = rest.split_first_chunk::<4>()?;
    let (height, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*height) as usize, u32::from_be_bytes(*width) as usize))
}

/// Height and width as the first frame header has them.
fn jpeg_sides(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut rest = bytes.get(2..)?;
    for _ in 0..MAX_SEGMENTS {
        let marker = match rest {
            // Any number of these may stand before a marker.
            [0xff, 0xff, ..] => {
                rest = &rest[1..];
                continue;
            }
            [0xff, marker, ..] => *marker,
            _ => return None,
        };
        rest = &rest[2..];
        let (length, content) = rest.split_first_chunk::<2>()?;
        match marker {
            // Frames, less the tables that lie among their numbers.
            0xc0..=0xcf if ![0xc4, 0xc8, 0xcc].contains(&marker) => {
                let [_, y1, y0, x1, x0, ..] = *content else { return None };
                return Some((u16::from_be_bytes([y1, y0]).into(), u16::from_be_bytes([x1, x0]).into()));
            }
            // A scan or the end without a frame.
            0xd9 | 0xda => return None,
            _ => rest = rest.get(usize::from(u16::from_be_bytes(*length)).max(2)..)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        [PNG_SIGNATURE, &[0, 0, 0, 13], b"IHDR", &width.to_be_bytes(), &height.to_be_bytes()].concat()
    }

    #[test]
    fn sizes_are_read_and_bounded() {
        let header = Header::read(&png(300, 20)).unwrap();
        assert_eq!(header, Header { format: Format::Png, height: 20, width: 300 });
        assert!(Header::read(&png(4096, 16_384)).is_ok());
        for (width, height) in
            [(50_000, 50_000), (0, 5), (5, 0), (16_385, 1), (16_384, 16_384), (u32::MAX, 1)]
        {
            let error = Header::read(&png(width, height)).unwrap_err();
            assert!(error.contains(&format!("got {width} by {height}")), "{error}");
        }
        let jpeg = [0xff, 0xd8, 0xff, 0xe0, 0, 4, 9, 9, 0xff, 0xff, 0xff, 0xc2, 0, 11, 8, 1, 0, 0, 7, 3];
        assert_eq!(Header::read(&jpeg).unwrap(), Header { format: Format::Jpeg, height: 256, width: 7 });
        for end in 0..jpeg.len() - 1 {
            assert!(Header::read(&jpeg[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_what_came() {
        let refusal = |bytes: &[u8]| Header::read(bytes).unwrap_err();
        assert_eq!(refusal(b""), "expected a PNG or JPEG image, got nothing");
        assert!(refusal(b"GIF89a....").contains("10 bytes that begin with \"GIF89a..\""));
        assert!(refusal(&png(1, 1)[..20]).contains("a whole PNG image, got 20 bytes without its size"));
        let endless = [&[0xff, 0xd8][..], &[0xff, 0xe0, 0, 2].repeat(MAX_SEGMENTS + 9)].concat();
        assert!(refusal(&endless).contains("a whole JPEG image"));
    }
}
