"""What development needs beside the packages."""
