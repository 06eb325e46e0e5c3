//! From an encoded image to RGB bytes, as PIL's `convert("RGB")` makes them of what it reads.

use super::header::{Format, Header};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

/// The most bytes that decoding takes for each place of an image: four 16-bit samples of a PNG, or the three colours of
/// a JPEG and its coefficients, where it comes in several scans.
pub(super) const BYTES_PER_PLACE: usize = 10;

/// An image in memory: `bytes` [height, width, 3].
pub(super) struct Rgb {
    pub(super) bytes: Vec<u8>,
    pub(super) height: usize,
    pub(super) width: usize,
}

/// Decodes an image whose header was read. The error says what is wrong with it.
pub(super) fn decode(bytes: &[u8], header: Header) -> Result<Rgb, String> {
    let run = || match header.format {
        Format::Png => decode_png(bytes),
        Format::Jpeg => decode_jpeg(bytes),
    };
    // Third-party code on bytes of strangers: its panics become errors.
    let image =
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("its decoder panicked".to_owned()));
    let name = if header.format == Format::Png { "PNG" } else { "JPEG" };
    let image = image.map_err(|e| format!("expected a whole, valid {name} image: {e}"))?;
    if (image.height, image.width) != (header.height, header.width)
        || image.bytes.len() != image.height * image.width * 3
    {
        return Err(format!("expected a valid {name} image, got one that has two sizes"));
    }
    Ok(image)
}

fn decode_png(bytes: &[u8]) -> Result<Rgb, String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Palettes and fewer than eight bits become eight bits a channel; 16 are cut below, as PIL cuts them.
    decoder.set_transformations(png::Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
    let (height, width) = (reader.info().height as usize, reader.info().width as usize);
    let size = reader.output_buffer_size().ok_or("its size cannot be addressed")?;
    if size > height.saturating_mul(width).saturating_mul(BYTES_PER_PLACE) {
        return Err(format!("it would take {size} bytes"));
    }
    let mut values = vec![0; size];
    reader.next_frame(&mut values).map_err(|e| e.to_string())?;
    let (colour, depth) = reader.output_color_type();
    let wide = depth == png::BitDepth::Sixteen;
    let to_rgb: fn(&[u8]) -> [u8; 3] = match (colour, wide) {
        (png::ColorType::Grayscale, false) => |v| [v[0]; 3],
        // PIL keeps 16 bits of grey, and clips them.
        (png::ColorType::Grayscale, true) => |v| [if v[0] == 0 { v[1] } else { u8::MAX }; 3],
        (png::ColorType::GrayscaleAlpha, _) => |v| [v[0]; 3],
        (png::ColorType::Rgb | png::ColorType::Rgba, true) => |v| [v[0], v[2], v[4]],
        _ => |v| [v[0], v[1], v[2]],
    };
    Ok(Rgb { bytes: repack(values, colour.samples() * if wide { 2 } else { 1 }, to_rgb), height, width })
}

fn decode_jpeg(bytes: &[u8]) -> Result<Rgb, String> {
    let options = DecoderOptions::default().set_strict_mode(true);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    let out = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        Some(ColorSpace::RGB | ColorSpace::YCbCr) => ColorSpace::RGB,
        other => {
            let other = other.map_or("nothing".to_owned(), |space| format!("{space:?}"));
            return Err(format!("expected grey, RGB or YCbCr colours, got {other}"));
        }
    };
    decoder.set_options(options.jpeg_set_out_colorspace(out));
    let values = decoder.decode().map_err(|e| e.to_string())?;
    let bytes = if out == ColorSpace::Luma { repack(values, 1, |v| [v[0]; 3]) } else { values };
    Ok(Rgb { bytes, height, width })
}

/// Turns every `size` bytes into three.
fn repack(mut values: Vec<u8>, size: usize, to_rgb: impl Fn(&[u8]) -> [u8; 3]) -> Vec<u8> {
    if size < 3 {
        return values.chunks_exact(size).flat_map(to_rgb).collect();
    }
    if size > 3 {
        let places = values.len() / size;
        for place in 0..places {
            let rgb = to_rgb(&values[place * size..][..size]);
            values[place * 3..][..3].copy_from_slice(&rgb);
        }
        values.truncate(places * 3);
    }
    values
}
