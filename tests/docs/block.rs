//! The fenced blocks of a document.

/// A fenced block of a document.
pub struct Block {
    /// The line of its fence, counted from 1.
    pub line: usize,
    /// What is written behind the backticks.
    pub fence: String,
    /// The lines between the fences, without the indentation of the first.
    pub text: String,
}

/// The blocks of a document, in their order.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, &str)> = None;
    for (number, line) in text.lines().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        open = match (open.take(), line.trim_start().strip_prefix("```")) {
            (Some((block, _)), Some(_)) => {
                blocks.push(block);
                None
            }
            (Some((mut block, indent)), None) => {
                block.text += line.strip_prefix(indent).unwrap_or(line);
                block.text.push('\n');
                Some((block, indent))
            }
            (None, Some(fence)) => {
                let block = Block { line: number + 1, fence: fence.trim().into(), text: String::new() };
                Some((block, indent))
            }
            (None, None) => None,
        };
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}
