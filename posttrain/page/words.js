"use strict";

/* Which words of two texts are only in one of them: their longest common subsequence of words is
   what they share. */

const WORD = /[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}\p{N}]+)*|[^\s\p{L}\p{M}\p{N}]/gu;
const LETTER = /[\p{L}\p{N}]/u;
const MOST_COMPARED = 4e6; // pairs of words, which take well under a second

/* Compare two texts word by word.

   Returns {common: how many words they share, ranges: for each text [[start, end]] of what only it
   has, alone: for each text how many words that are}, or null where the texts are too long. */
function compareWords(first, second) {
  const words = [wordsOf(first), wordsOf(second)];
  const shared = sharedWords(...words.map((list) => list.map((word) => word.text)));
  if (!shared) return null;
  const countWords = (list, wanted) => (word, place) => wanted === list[place] && word.isWord;
  return {
    common: words[0].filter(countWords(shared[0], true)).length,
    alone: [0, 1].map((i) => words[i].filter(countWords(shared[i], false)).length),
    ranges: [0, 1].map((i) => unsharedRanges(words[i], shared[i])),
  };
}

// The words and the marks of punctuation of a text, with their places.
function wordsOf(text) {
  return Array.from(text.matchAll(WORD), (match) => ({
    text: match[0],
    start: match.index,
    end: match.index + match[0].length,
    isWord: LETTER.test(match[0]),
  }));
}

// For each of two lists whether each of its words is in what both share; null for lists too long.
function sharedWords(first, second) {
  let start = 0;
  let [endFirst, endSecond] = [first.length, second.length];
  while (start < Math.min(endFirst, endSecond) && first[start] === second[start]) start += 1;
  while (Math.min(endFirst, endSecond) > start && first[endFirst - 1] === second[endSecond - 1]) {
    endFirst -= 1;
    endSecond -= 1;
  }
  if ((endFirst - start) * (endSecond - start) > MOST_COMPARED) return null;
  const shared = [first, second].map((list) => new Array(list.length).fill(true));
  shared[0].fill(false, start, endFirst);
  shared[1].fill(false, start, endSecond);
  const middle = [first.slice(start, endFirst), second.slice(start, endSecond)];
  for (const [i, j] of commonSubsequence(...middle)) {
    shared[0][start + i] = true;
    shared[1][start + j] = true;
  }
  return shared;
}

// The places [i, j] of a longest common subsequence of two lists.
function commonSubsequence(first, second) {
  const across = second.length + 1;
  const longest = new Uint16Array((first.length + 1) * across); // from (i, j) to both ends
  for (let i = first.length - 1; i >= 0; i -= 1) {
    for (let j = second.length - 1; j >= 0; j -= 1) {
      longest[i * across + j] = first[i] === second[j]
        ? longest[(i + 1) * across + j + 1] + 1
        : Math.max(longest[(i + 1) * across + j], longest[i * across + j + 1]);
    }
  }
  const places = [];
  let [i, j] = [0, 0];
  while (i < first.length && j < second.length) {
    if (first[i] === second[j]) {
      places.push([i, j]);
      i += 1;
      j += 1;
    } else if (longest[(i + 1) * across + j] >= longest[i * across + j + 1]) {
      i += 1;
    } else {
      j += 1;
    }
  }
  return places;
}

// The ranges of a text's words that are not shared; neighbours make one range.
function unsharedRanges(words, shared) {
  const ranges = [];
  words.forEach((word, place) => {
    if (shared[place]) return;
    if (place > 0 && !shared[place - 1]) ranges.at(-1)[1] = word.end;
    else ranges.push([word.start, word.end]);
  });
  return ranges;
}
