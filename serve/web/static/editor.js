// The code on the page: CodeMirror with findings as marks in the text and the gutter, and messages that hover.

import { element, message, sureness } from "./dom.js";
import {
  bracketMatching, ChangeSet, defaultKeymap, drawSelection, EditorState, EditorView, foldGutter, foldKeymap,
  highlightActiveLine, highlightActiveLineGutter, highlightSelectionMatches, HighlightStyle, history, historyKeymap,
  indentOnInput, keymap, lineNumbers, lintGutter, lintKeymap, python, searchKeymap, setDiagnostics,
  syntaxHighlighting, tags,
} from "./vendor/codemirror.js";

const SEVERITIES = { error: "error", warning: "warning", note: "info" };

const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword, tags.controlKeyword], color: "var(--code-keyword)" },
  { tag: [tags.string, tags.special(tags.string)], color: "var(--code-string)" },
  { tag: [tags.comment], color: "var(--code-comment)", fontStyle: "italic" },
  { tag: [tags.number, tags.bool, tags.null], color: "var(--code-number)" },
  { tag: [tags.definition(tags.variableName), tags.function(tags.variableName)], color: "var(--code-name)" },
]);

// Colours are the page's variables, so that light and dark need no two themes.
const look = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--surface)", fontSize: "0.875rem" },
  "&.cm-focused": { outline: "2px solid var(--focus)", outlineOffset: "-2px" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.55", overflow: "auto" },
  ".cm-content": { caretColor: "var(--text)" },
  ".cm-cursor, .cm-dropCursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--raised)", color: "var(--muted)", borderRight: "1px solid var(--line)" },
  ".cm-activeLine": { backgroundColor: "var(--active)" },
  ".cm-activeLineGutter": { backgroundColor: "var(--active)", color: "var(--text)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--selection)",
  },
  ".cm-matchingBracket": { backgroundColor: "var(--selection)" },
  ".cm-tooltip": { backgroundColor: "var(--raised)", color: "var(--text)", border: "1px solid var(--line)", maxWidth: "40rem" },
  ".cm-diagnostic": { padding: "0.5rem 0.75rem" },
  ".cm-diagnosticAction": { backgroundColor: "var(--accent)", color: "var(--on-accent)", padding: "0.2rem 0.6rem", borderRadius: "0.3rem" },
  ".cm-panels": { backgroundColor: "var(--raised)", color: "var(--text)" },
  ".cm-lintRange": { backgroundImage: "none", textDecoration: "underline wavy", textDecorationThickness: "1.5px", textUnderlineOffset: "3px" },
  ".cm-lintRange-error": { textDecorationColor: "var(--error)" },
  ".cm-lintRange-warning": { textDecorationColor: "var(--warning)" },
  ".cm-lintRange-info": { textDecorationColor: "var(--note)" },
  ".cm-diagnostic-error": { borderLeftColor: "var(--error)" },
  ".cm-diagnostic-warning": { borderLeftColor: "var(--warning)" },
  ".cm-diagnostic-info": { borderLeftColor: "var(--note)" },
});

// Left to itself, Chromium keeps the style of text that is typed over as an inline style, which the content security
// policy refuses and complains of.
const typeOverSelection = EditorView.domEventHandlers({
  beforeinput(event, view) {
    if (event.inputType !== "insertText" || view.composing || view.state.selection.main.empty) return false;
    event.preventDefault();
    view.dispatch(view.state.replaceSelection(event.data ?? ""), { userEvent: "input.type", scrollIntoView: true });
    return true;
  },
});

/**
 * The editor. It knows the text that was analysed and every change since, so that findings and fixes stay where they
 * belong while somebody types.
 */
export class Editor {
  /** `onChange()` after every change of the text, `onRun()` on Ctrl+Enter, `onFix(finding)` from a hover message. */
  constructor(parent, { onChange, onRun, onFix }) {
    this.onChange = onChange;
    this.onFix = onFix;
    this.extensions = [
      lineNumbers(), highlightActiveLineGutter(), foldGutter(), lintGutter(), history(), drawSelection(),
      indentOnInput(), bracketMatching(), highlightActiveLine(), highlightSelectionMatches(), python(),
      syntaxHighlighting(colours), look,
      typeOverSelection,
      EditorView.contentAttributes.of({ "aria-label": "Code to analyse", spellcheck: "false" }),
      keymap.of([
        { key: "Mod-Enter", run: () => (onRun(), true) },
        ...defaultKeymap.filter(({ key }) => key !== "Mod-Enter"),
        ...historyKeymap, ...searchKeymap, ...foldKeymap, ...lintKeymap,
      ]),
      EditorView.updateListener.of((update) => update.docChanged && this.#changed(update.changes)),
    ];
    // In a shadow root CodeMirror's styles are constructed, not inlined: the content security policy allows no other.
    const root = parent.attachShadow({ mode: "open" });
    this.view = new EditorView({ parent: root, root });
    this.show(this.document(""));
  }

  /** A document to `show`: its text, its undo history, and what was found in it. */
  document(text) {
    const state = EditorState.create({ doc: text, extensions: this.extensions });
    return { state, analysed: state.doc, changes: ChangeSet.empty(state.doc.length), findings: [] };
  }

  show(document) {
    if (this.shown) this.shown.state = this.view.state;
    this.shown = document;
    this.view.setState(document.state);
    this.#mark();
  }

  get text() {
    return this.view.state.doc.toString();
  }

  /** The text of any document, shown or not. */
  textOf(document) {
    return (document === this.shown ? this.view.state : document.state).doc.toString();
  }

  /** From now on findings are about the text as it is. */
  analysing(document) {
    document.analysed = (document === this.shown ? this.view.state : document.state).doc;
    document.changes = ChangeSet.empty(document.analysed.length);
    this.setFindings(document, []);
  }

  setFindings(document, findings) {
    document.findings = findings;
    if (document === this.shown) this.#mark();
  }

  /** "open"; "fixed" once its fix is in the text; "changed" when something else is there. */
  stateOf(document, finding) {
    const edits = finding.fix?.edits ?? [];
    const now = (document === this.shown ? this.view.state : document.state).doc;
    const at = (span) => now.sliceString(document.changes.mapPos(span.from, -1), document.changes.mapPos(span.to, 1));
    if (edits.length) {
      const spans = edits.map((edit) => ({ ...this.#span(document.analysed, edit), text: edit.text }));
      if (spans.every((span) => at(span) === span.text)) return "fixed";
      return spans.every((span) => at(span) === document.analysed.sliceString(span.from, span.to)) ? "open" : "changed";
    }
    const span = this.#span(document.analysed, finding);
    return at(span) === document.analysed.sliceString(span.from, span.to) ? "open" : "changed";
  }

  /** Put a finding's fix into the text. One step to undo. */
  applyFix(finding) {
    const { analysed, changes } = this.shown;
    const edits = finding.fix.edits.map((edit) => {
      const { from, to } = this.#span(analysed, edit);
      return { from: changes.mapPos(from, -1), to: changes.mapPos(to, 1), insert: edit.text };
    });
    this.view.dispatch({ changes: edits, selection: { anchor: edits[0].from }, scrollIntoView: true, userEvent: "input.fix" });
    this.view.focus();
  }

  /** Where a finding is now, as a line number. */
  lineOf(document, finding) {
    const now = (document === this.shown ? this.view.state : document.state).doc;
    const { from } = this.#span(document.analysed, finding);
    return now.lineAt(Math.min(document.changes.mapPos(from, -1), now.length)).number;
  }

  /** Select what a finding is about, and put the cursor there. */
  goTo(finding) {
    const { from, to } = this.#span(this.shown.analysed, finding);
    const { changes } = this.shown;
    this.#select(changes.mapPos(from, -1), changes.mapPos(to, 1));
  }

  /** Put the cursor at a line and a column, both from 1. */
  goToPlace(line, column) {
    const { from } = this.#span(this.view.state.doc, {
      start_line: line, start_column: column, end_line: line, end_column: column,
    });
    this.#select(from, from);
  }

  /** The lines a fix changes, as they were and as they will be. */
  difference(document, fix) {
    const { analysed } = document;
    const first = Math.min(...fix.edits.map((edit) => edit.start_line));
    const last = Math.max(...fix.edits.map((edit) => edit.end_line));
    const { from } = this.#line(analysed, first);
    const { to } = this.#line(analysed, last);
    let after = "";
    let position = from;
    const spans = fix.edits.map((edit) => ({ ...this.#span(analysed, edit), text: edit.text }));
    for (const span of spans.sort((one, other) => one.from - other.from)) {
      after += analysed.sliceString(position, span.from) + span.text;
      position = span.to;
    }
    after += analysed.sliceString(position, to);
    return { before: analysed.sliceString(from, to).split("\n"), after: after.split("\n"), line: first };
  }

  #select(anchor, head) {
    const end = this.view.state.doc.length;
    const selection = { anchor: Math.min(anchor, end), head: Math.min(head, end) };
    this.view.dispatch({ selection, effects: EditorView.scrollIntoView(selection.anchor, { y: "center" }) });
    this.view.focus();
  }

  #changed(changes) {
    this.shown.changes = this.shown.changes.compose(changes);
    // Marks follow from findings and changes; they can not be set while the editor is still updating.
    queueMicrotask(() => {
      this.#mark();
      this.onChange();
    });
  }

  #mark() {
    const document = this.shown;
    const end = this.view.state.doc.length;
    const diagnostics = document.findings
      .filter((finding) => this.stateOf(document, finding) === "open")
      .map((finding) => {
        const { from, to } = this.#span(document.analysed, finding);
        const fixable = finding.fix?.verified && finding.fix.edits.length > 0;
        return {
          from: Math.min(document.changes.mapPos(from, -1), end),
          to: Math.min(document.changes.mapPos(to, 1), end),
          severity: SEVERITIES[finding.severity],
          source: `${finding.rule} · ${sureness(finding.confidence)}`,
          message: finding.message,
          renderMessage: () => element("span", {}, message(finding.message)),
          actions: fixable ? [{ name: "Apply fix", apply: () => this.onFix(finding) }] : [],
        };
      })
      .sort((one, other) => one.from - other.from);
    this.view.dispatch(setDiagnostics(this.view.state, diagnostics));
  }

  #line(text, number) {
    return text.line(Math.min(Math.max(number, 1), text.lines));
  }

  /** Offsets of a place the server named: its columns count code points, JavaScript's strings count UTF-16 units. */
  #span(text, place) {
    const at = (number, column) => {
      const line = this.#line(text, number);
      let units = 0;
      let left = column - 1;
      for (const character of line.text) {
        if (left-- <= 0) break;
        units += character.length;
      }
      return line.from + units;
    };
    return { from: at(place.start_line, place.start_column), to: at(place.end_line, place.end_column) };
  }
}
