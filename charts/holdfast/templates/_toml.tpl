{{/*
A table as TOML. Takes `table`, and the `path` that leads to it as a list. Scalars and lists come
first, then each table below under a header of its own. JSON's strings, numbers, booleans and lists
are TOML's too; `toToml` would turn every whole number into one with a fraction.
*/}}
{{- define "holdfast.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- $below := append $path $key }}
{{- $hasOwn := not $value }}
{{- range $value }}{{ if not (kindIs "map" .) }}{{ $hasOwn = true }}{{ end }}{{ end }}
{{- if $hasOwn }}

[{{ join "." $below }}]
{{- end }}
{{- include "holdfast.toml" (dict "table" $value "path" $below) }}
{{- end }}
{{- end }}
{{- end -}}
