/// What is watched of a text, by name: numbers that change when texts do.
pub const DESCRIPTORS: [&str; 5] = ["characters", "words", "digits", "capitals", "beyond_ascii"];

/// A text as numbers: its characters and words, and the shares of characters that are digits, capital letters, and not ASCII.
pub fn describe_text(text: &str) -> [f64; DESCRIPTORS.len()] {
    let (mut characters, mut digits, mut capitals, mut beyond) = (0_u64, 0_u64, 0_u64, 0_u64);
    for character in text.chars() {
        characters += 1;
        digits += u64::from(character.is_numeric());
        capitals += u64::from(character.is_uppercase());
        beyond += u64::from(!character.is_ascii());
    }
    let share = |count: u64| if characters == 0 { 0.0 } else { count as f64 / characters as f64 };
    let words = text.split_whitespace().count() as f64;
    [characters as f64, words, share(digits), share(capitals), share(beyond)]
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_text_is_described_by_its_characters() {
        assert_eq!(super::describe_text("Ab 12 é"), [7.0, 3.0, 2.0 / 7.0, 1.0 / 7.0, 1.0 / 7.0]);
        assert_eq!(super::describe_text(""), [0.0; 5]);
    }
}
