"""Published rules that score whole tracks after the video, as published AP is measured. Streams never use them."""
