package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const vectors = "../../tests/vectors"

func TestTheGoldenVectorsPass(t *testing.T) {
	if err := checkVectors(vectors); err != nil {
		t.Fatal(err)
	}
}

func TestAVectorThatDiffersIsNamed(t *testing.T) {
	for _, c := range []struct{ file, from, to string }{
		{"chunks.json", "e3069283", "e3069284"},
		{"encodings.json", "0000803f0040803f004080bf", "0000803f0040803f004080be"},
	} {
		folder := t.TempDir()
		for _, name := range []string{"chunks.json", "encodings.json"} {
			text, err := os.ReadFile(filepath.Join(vectors, name))
			if err != nil {
				t.Fatal(err)
			}
			if name == c.file {
				text = bytes.Replace(text, []byte(`"`+c.from), []byte(`"`+c.to), 1)
			}
			if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := checkVectors(folder); err == nil || !strings.HasPrefix(err.Error(), c.file) {
			t.Errorf("%s: %v", c.file, err)
		}
	}
}
